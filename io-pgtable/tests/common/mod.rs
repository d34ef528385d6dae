//! What the tests share: frames at chosen physical addresses, and a walker that knows nothing of the engine.

mod arena;
#[allow(dead_code, reason = "not every test walks")]
pub(crate) mod walker;

pub(crate) use arena::Arena;
