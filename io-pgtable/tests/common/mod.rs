//! What the tests share: memory at chosen physical addresses, and a table in it.

mod arena;
mod bed;
#[allow(dead_code, reason = "for golden tests")]
pub(crate) mod image;

#[allow(unused_imports, reason = "not every test asks where memory is")]
pub(crate) use arena::{Arena, BASE};
#[allow(unused_imports, reason = "not every test wants a table alone")]
pub(crate) use bed::{Bed, RW, amdv1_cfg};
