//! Machines whose table is known to be wrong, and what is right for them.

use alloc::vec::Vec;

use super::{Override, OverrideError};

/// The machines that are known (Linux: `ivrs_quirks`), in the form that [`overrides_for`] reads.
#[doc(alias = "ivrs_quirks")]
pub const QUIRKS: &str = include_str!("quirks.tsv");

/// A line of a quirk table that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuirkError {
    /// It has not the three columns.
    #[error("line {line} of the quirk table has not three columns: vendor, product, parameters")]
    Columns {
        /// Its number, from 1.
        line: usize,
    },
    /// One of its parameters is none.
    #[error("line {line} of the quirk table: {error}")]
    Parameter {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        error: OverrideError,
    },
}

/// The corrections that `table` has for the machine that calls itself `vendor` and `product` in its DMI data (Linux:
/// `amd_iommu_apply_ivrs_quirks`): the columns are found anywhere in those, as with Linux's `DMI_MATCH`. They go into [`Config::overrides`](crate::Config::overrides), behind the user's own.
///
/// `table` is [`QUIRKS`] or a text like it: a line for each machine with vendor, product and, separated by spaces,
/// parameters as [`Override`] reads them; tabs between the three. Empty lines and lines that start with `#` say nothing.
///
/// # Errors
/// [`QuirkError`] for the first line that cannot be read, whatever machine it is for.
#[doc(alias = "amd_iommu_apply_ivrs_quirks")]
pub fn overrides_for(table: &str, vendor: &str, product: &str) -> Result<Vec<Override>, QuirkError> {
    let mut overrides = Vec::new();
    for (index, text) in table.lines().enumerate() {
        let line = index + 1;
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        let mut columns = text.split('\t');
        let (Some(of), Some(name), Some(parameters), None) =
            (columns.next(), columns.next(), columns.next(), columns.next())
        else {
            return Err(QuirkError::Columns { line });
        };
        for parameter in parameters.split_whitespace() {
            let correction = parameter.parse().map_err(|error| QuirkError::Parameter { line, error })?;
            if vendor.contains(of) && product.contains(name) {
                overrides.push(correction);
            }
        }
    }
    Ok(overrides)
}
