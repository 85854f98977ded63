//! test-netns
