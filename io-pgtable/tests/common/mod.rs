//! What the tests share: frames at chosen physical addresses, a walker that knows nothing of the engine, and both beside a
//! table.

mod arena;
mod bed;
#[allow(dead_code, reason = "not every test walks")]
pub(crate) mod walker;

pub(crate) use arena::Arena;
#[allow(unused_imports, reason = "not every test wants a table alone")]
pub(crate) use bed::{Bed, RW};
