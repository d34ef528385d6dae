//! What the programs share.

pub mod tree;
