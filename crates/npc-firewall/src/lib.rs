//! npc-firewall
