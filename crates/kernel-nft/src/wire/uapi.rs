//! Numbers of the kernel's interface: include/uapi/linux/{netlink.h, netfilter/nfnetlink.h,
//! netfilter/nf_tables.h, netfilter/ipset/ip_set.h}. Named as there.

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(crate) const NLA_F_NESTED: u16 = 0x8000;
pub(crate) const NLMSGERR_ATTR_OFFS: u16 = 2;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 17;
pub(crate) const NFNL_BATCH_GENID: u16 = 1;
pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const NFNLGRP_NFTABLES: u32 = 7;

const fn message(number: u16) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | number
}
pub(crate) const NFT_MSG_NEWTABLE: u16 = message(0);
pub(crate) const NFT_MSG_GETTABLE: u16 = message(1);
pub(crate) const NFT_MSG_DELTABLE: u16 = message(2);
pub(crate) const NFT_MSG_NEWCHAIN: u16 = message(3);
pub(crate) const NFT_MSG_GETCHAIN: u16 = message(4);
pub(crate) const NFT_MSG_DELCHAIN: u16 = message(5);
pub(crate) const NFT_MSG_NEWRULE: u16 = message(6);
pub(crate) const NFT_MSG_GETRULE: u16 = message(7);
pub(crate) const NFT_MSG_DELRULE: u16 = message(8);
pub(crate) const NFT_MSG_NEWSET: u16 = message(9);
pub(crate) const NFT_MSG_GETSET: u16 = message(10);
pub(crate) const NFT_MSG_DELSET: u16 = message(11);
pub(crate) const NFT_MSG_NEWSETELEM: u16 = message(12);
pub(crate) const NFT_MSG_GETSETELEM: u16 = message(13);
pub(crate) const NFT_MSG_DELSETELEM: u16 = message(14);
pub(crate) const NFT_MSG_NEWGEN: u16 = message(15);
pub(crate) const NFT_MSG_GETGEN: u16 = message(16);
pub(crate) const NFT_MSG_NEWOBJ: u16 = message(18);
pub(crate) const NFT_MSG_GETOBJ: u16 = message(19);
pub(crate) const NFT_MSG_DELOBJ: u16 = message(20);

pub(crate) const NFTA_LIST_ELEM: u16 = 1;

pub(crate) const NFTA_TABLE_NAME: u16 = 1;
pub(crate) const NFTA_TABLE_FLAGS: u16 = 2;
pub(crate) const NFTA_TABLE_USERDATA: u16 = 6;
pub(crate) const NFTA_TABLE_OWNER: u16 = 7;
pub(crate) const NFT_TABLE_F_DORMANT: u32 = 1;
pub(crate) const NFT_TABLE_F_OWNER: u32 = 2;
pub(crate) const NFT_TABLE_F_PERSIST: u32 = 4;

pub(crate) const NFTA_CHAIN_TABLE: u16 = 1;
pub(crate) const NFTA_CHAIN_NAME: u16 = 3;
pub(crate) const NFTA_CHAIN_HOOK: u16 = 4;
pub(crate) const NFTA_CHAIN_POLICY: u16 = 5;
pub(crate) const NFTA_CHAIN_TYPE: u16 = 7;
pub(crate) const NFTA_CHAIN_FLAGS: u16 = 10;
pub(crate) const NFTA_CHAIN_USERDATA: u16 = 12;
pub(crate) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(crate) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(crate) const NF_DROP: u32 = 0;
pub(crate) const NF_ACCEPT: u32 = 1;
/// `NFT_CHAIN_BASE`: the one flag that says nothing new.
pub(crate) const NFT_CHAIN_BASE: u32 = 1;

pub(crate) const NFTA_RULE_TABLE: u16 = 1;
pub(crate) const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_HANDLE: u16 = 3;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(crate) const NFTA_RULE_USERDATA: u16 = 7;
pub(crate) const NFTA_EXPR_NAME: u16 = 1;
pub(crate) const NFTA_EXPR_DATA: u16 = 2;

pub(crate) const NFTA_SET_TABLE: u16 = 1;
pub(crate) const NFTA_SET_NAME: u16 = 2;
pub(crate) const NFTA_SET_FLAGS: u16 = 3;
pub(crate) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(crate) const NFTA_SET_KEY_LEN: u16 = 5;
pub(crate) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(crate) const NFTA_SET_DATA_LEN: u16 = 7;
pub(crate) const NFTA_SET_DESC: u16 = 9;
pub(crate) const NFTA_SET_ID: u16 = 10;
pub(crate) const NFTA_SET_TIMEOUT: u16 = 11;
pub(crate) const NFTA_SET_USERDATA: u16 = 13;
pub(crate) const NFTA_SET_DESC_SIZE: u16 = 1;
pub(crate) const NFT_SET_ANONYMOUS: u32 = 0x1;
pub(crate) const NFT_SET_INTERVAL: u32 = 0x4;
pub(crate) const NFT_SET_MAP: u32 = 0x8;
pub(crate) const NFT_DATA_VERDICT: u32 = 0xffff_ff00;

pub(crate) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(crate) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(crate) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(crate) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(crate) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(crate) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NFTA_DATA_VERDICT: u16 = 2;
pub(crate) const NFTA_VERDICT_CODE: u16 = 1;
pub(crate) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(crate) const NFT_JUMP: i32 = -3;
pub(crate) const NFT_GOTO: i32 = -4;
pub(crate) const NFT_RETURN: i32 = -5;

pub(crate) const NFTA_OBJ_TABLE: u16 = 1;
pub(crate) const NFTA_OBJ_NAME: u16 = 2;
pub(crate) const NFTA_OBJ_TYPE: u16 = 3;
pub(crate) const NFTA_OBJ_DATA: u16 = 4;
pub(crate) const NFTA_OBJ_USERDATA: u16 = 8;
pub(crate) const NFT_OBJECT_COUNTER: u32 = 1;
pub(crate) const NFTA_COUNTER_BYTES: u16 = 1;
pub(crate) const NFTA_COUNTER_PACKETS: u16 = 2;

pub(crate) const NFTA_GEN_ID: u16 = 1;
pub(crate) const NFTA_GEN_PROC_PID: u16 = 2;
pub(crate) const NFTA_GEN_PROC_NAME: u16 = 3;

/// Userdata is opaque to the kernel; its format is libnftnl's (include/libnftnl/udata.h): type, length, data.
pub(crate) const NFTNL_UDATA_RULE_COMMENT: u8 = 0;
pub(crate) const NFTNL_UDATA_TABLE_COMMENT: u8 = 0;
pub(crate) const NFTNL_UDATA_CHAIN_COMMENT: u8 = 0;
pub(crate) const NFTNL_UDATA_OBJ_COMMENT: u8 = 0;
pub(crate) const NFTNL_UDATA_SET_KEYBYTEORDER: u8 = 0;
pub(crate) const NFTNL_UDATA_SET_DATABYTEORDER: u8 = 1;
pub(crate) const NFTNL_UDATA_SET_COMMENT: u8 = 7;

/// Verdict and data registers (`NFT_REG_VERDICT`, `NFT_REG_1`, `NFT_REG32_00`).
pub(crate) const NFT_REG_VERDICT: u32 = 0;
pub(crate) const NFT_REG_1: u32 = 1;
pub(crate) const NFT_REG_4: u32 = 4;
pub(crate) const NFT_REG32_00: u32 = 8;
pub(crate) const NFT_REG32_15: u32 = 23;

// Attributes of expressions, without their NFTA_ to tell them from the others at a glance.
pub(crate) const META_DREG: u16 = 1;
pub(crate) const META_KEY: u16 = 2;
pub(crate) const META_SREG: u16 = 3;
pub(crate) const META_KEY_MARK: u32 = 3;
pub(crate) const META_KEY_IIF: u32 = 4;
pub(crate) const META_KEY_IIFNAME: u32 = 6;
pub(crate) const META_KEY_OIFNAME: u32 = 7;
pub(crate) const META_KEY_IIFKIND: u32 = 26;
pub(crate) const META_KEY_NFPROTO: u32 = 15;
pub(crate) const META_KEY_L4PROTO: u32 = 16;
pub(crate) const PAYLOAD_DREG: u16 = 1;
pub(crate) const PAYLOAD_BASE: u16 = 2;
pub(crate) const PAYLOAD_OFFSET: u16 = 3;
pub(crate) const PAYLOAD_LEN: u16 = 4;
pub(crate) const PAYLOAD_SREG: u16 = 5;
pub(crate) const PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(crate) const PAYLOAD_TRANSPORT_HEADER: u32 = 2;
pub(crate) const CT_DREG: u16 = 1;
pub(crate) const CT_KEY: u16 = 2;
pub(crate) const CT_DIRECTION: u16 = 3;
pub(crate) const CT_SREG: u16 = 4;
pub(crate) const CT_KEY_STATE: u32 = 0;
pub(crate) const CT_KEY_DIRECTION: u32 = 1;
pub(crate) const CT_KEY_STATUS: u32 = 2;
pub(crate) const CT_KEY_MARK: u32 = 3;
pub(crate) const CT_KEY_PROTO_SRC: u32 = 11;
pub(crate) const CT_KEY_PROTO_DST: u32 = 12;
pub(crate) const CT_KEY_SRC_IP: u32 = 19;
pub(crate) const CT_KEY_DST_IP: u32 = 20;
pub(crate) const CT_KEY_SRC_IP6: u32 = 21;
pub(crate) const CT_KEY_DST_IP6: u32 = 22;
pub(crate) const CT_DIR_ORIGINAL: u8 = 0;
pub(crate) const CT_DIR_REPLY: u8 = 1;
pub(crate) const CMP_SREG: u16 = 1;
pub(crate) const CMP_OP: u16 = 2;
pub(crate) const CMP_DATA: u16 = 3;
pub(crate) const RANGE_SREG: u16 = 1;
pub(crate) const RANGE_OP: u16 = 2;
pub(crate) const RANGE_FROM_DATA: u16 = 3;
pub(crate) const RANGE_TO_DATA: u16 = 4;
pub(crate) const BITWISE_SREG: u16 = 1;
pub(crate) const BITWISE_DREG: u16 = 2;
pub(crate) const BITWISE_LEN: u16 = 3;
pub(crate) const BITWISE_MASK: u16 = 4;
pub(crate) const BITWISE_XOR: u16 = 5;
pub(crate) const BITWISE_OP: u16 = 6;
pub(crate) const LOOKUP_SET: u16 = 1;
pub(crate) const LOOKUP_SREG: u16 = 2;
pub(crate) const LOOKUP_DREG: u16 = 3;
pub(crate) const LOOKUP_FLAGS: u16 = 5;
pub(crate) const LOOKUP_F_INV: u32 = 1;
pub(crate) const IMMEDIATE_DREG: u16 = 1;
pub(crate) const IMMEDIATE_DATA: u16 = 2;
pub(crate) const OBJREF_IMM_TYPE: u16 = 1;
pub(crate) const OBJREF_IMM_NAME: u16 = 2;
pub(crate) const LIMIT_RATE: u16 = 1;
pub(crate) const LIMIT_UNIT: u16 = 2;
pub(crate) const LIMIT_BURST: u16 = 3;
pub(crate) const LIMIT_TYPE: u16 = 4;
pub(crate) const LIMIT_FLAGS: u16 = 5;
pub(crate) const LIMIT_UNIT_MINUTE: u64 = 60;
pub(crate) const LOG_GROUP: u16 = 1;
pub(crate) const LOG_PREFIX: u16 = 2;
pub(crate) const LOG_SNAPLEN: u16 = 3;
pub(crate) const LOG_QTHRESHOLD: u16 = 4;
pub(crate) const REJECT_TYPE: u16 = 1;
pub(crate) const REJECT_ICMP_CODE: u16 = 2;
pub(crate) const REJECT_TCP_RST: u32 = 1;
pub(crate) const REJECT_ICMPX_UNREACH: u32 = 2;
pub(crate) const REJECT_ICMPX_PORT_UNREACH: u8 = 1;
pub(crate) const REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;
pub(crate) const MASQ_FLAGS: u16 = 1;
pub(crate) const MASQ_REG_PROTO_MIN: u16 = 2;
pub(crate) const NAT_TYPE: u16 = 1;
pub(crate) const NAT_FAMILY: u16 = 2;
pub(crate) const NAT_REG_ADDR_MIN: u16 = 3;
pub(crate) const NAT_REG_ADDR_MAX: u16 = 4;
pub(crate) const NAT_REG_PROTO_MIN: u16 = 5;
pub(crate) const NAT_REG_PROTO_MAX: u16 = 6;
pub(crate) const NAT_FLAGS: u16 = 7;
pub(crate) const NAT_SNAT: u32 = 0;
pub(crate) const NAT_DNAT: u32 = 1;
pub(crate) const REDIR_REG_PROTO_MIN: u16 = 1;
pub(crate) const REDIR_REG_PROTO_MAX: u16 = 2;
pub(crate) const REDIR_FLAGS: u16 = 3;
/// `NF_NAT_RANGE_*` of include/uapi/linux/netfilter/nf_nat.h.
pub(crate) const RANGE_MAP_IPS: u32 = 1;
pub(crate) const RANGE_PROTO_SPECIFIED: u32 = 2;
pub(crate) const RANGE_PROTO_RANDOM: u32 = 4;
pub(crate) const RANGE_PERSISTENT: u32 = 8;
pub(crate) const RANGE_PROTO_RANDOM_FULLY: u32 = 16;
pub(crate) const EXTHDR_TYPE: u16 = 2;
pub(crate) const EXTHDR_OFFSET: u16 = 3;
pub(crate) const EXTHDR_LEN: u16 = 4;
pub(crate) const EXTHDR_FLAGS: u16 = 5;
pub(crate) const EXTHDR_OP: u16 = 6;
pub(crate) const EXTHDR_SREG: u16 = 7;
pub(crate) const EXTHDR_OP_TCPOPT: u32 = 1;
pub(crate) const FIB_DREG: u16 = 1;
pub(crate) const FIB_RESULT: u16 = 2;
pub(crate) const FIB_FLAGS: u16 = 3;
pub(crate) const FIB_RESULT_ADDRTYPE: u32 = 3;
pub(crate) const FIB_F_SADDR: u32 = 1;
pub(crate) const FIB_F_DADDR: u32 = 2;

/// `NFNL_SUBSYS_IPSET`
const NFNL_SUBSYS_IPSET: u16 = 6;
pub(crate) const IPSET_CMD_DESTROY: u16 = (NFNL_SUBSYS_IPSET << 8) | 3;
pub(crate) const IPSET_CMD_LIST: u16 = (NFNL_SUBSYS_IPSET << 8) | 7;
pub(crate) const IPSET_ATTR_PROTOCOL: u16 = 1;
pub(crate) const IPSET_ATTR_SETNAME: u16 = 2;
pub(crate) const IPSET_ATTR_FLAGS: u16 = 6;
pub(crate) const IPSET_FLAG_LIST_SETNAME: u32 = 2;
/// `IPSET_PROTOCOL_MIN`: Linux before 4.20 knows no other.
pub(crate) const IPSET_PROTOCOL: u8 = 6;
pub(crate) const IPSET_ERR_BUSY: i32 = 4100;
