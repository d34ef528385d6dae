//! What a kernel brings for the stack, all of it. README.md counts the lines.

mod acpi;
mod clock;
mod config_space;
mod frames;
mod function;
mod machine;
mod registers;

pub(crate) use self::acpi::AcpiTables;
pub(crate) use self::machine::Machine;
