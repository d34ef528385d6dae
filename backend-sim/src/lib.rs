#![doc = include_str!("../README.md")]

mod engine;
mod function;
mod hardware;
mod machine;
mod platform;
mod threads;

pub use engine::{EngineBench, EngineError};
pub use machine::{Config, SimError, SimMachine};
pub use platform::SimPlatform;
pub use sim_hardware;
