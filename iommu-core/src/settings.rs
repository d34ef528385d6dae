//! What an administrator decides, as a value and as Linux's kernel parameters.

use alloc::boxed::Box;

use crate::ops::DomainType;

/// The word of somebody who trusts devices: they may be in a domain that does not confine them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trust(());

impl Trust {
    /// Says it.
    ///
    /// # Safety
    /// The caller trusts every device that is put into an identity domain on the strength of this value, bound to a driver or
    /// not, to touch only memory that it was given, and to stop before that is given back: no hardware enforces it.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

/// What an administrator decides (Linux: kernel parameters). By default devices are translated and invalidations strict.
/// (Linux is lazy by default on x86 and s390.)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Devices are not translated unless they must be (`iommu.passthrough=1`): that takes trust.
    pub passthrough: Option<Trust>,
    /// Unmaps may leave their invalidation to a flush queue (`iommu.strict=0`).
    pub lazy: bool,
    /// Devices get addresses above 4 GiB at once (`iommu.forcedac=1`).
    pub forcedac: bool,
}

/// What is wrong with a parameter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// There is no such parameter.
    #[error("there is no parameter {0}")]
    Unknown(Box<str>),
    /// It has no value, or one that is neither yes nor no.
    #[error("{parameter} is neither yes nor no: {value:?}")]
    NotBool {
        /// The parameter.
        parameter: &'static str,
        /// What was written after it.
        value: Box<str>,
    },
    /// Devices that are not translated must be trusted, and nobody has said that he does.
    #[error("iommu.passthrough takes trust in every device, and nobody has said that he trusts them")]
    NeedsTrust,
}

impl Settings {
    /// Reads a kernel command line: `iommu.passthrough=`, `iommu.strict=` and `iommu.forcedac=`, each with `1`, `y`, `t`,
    /// `on` or `0`, `n`, `f`, `off`; and `pt` or `nopt` in x86's `iommu=`, for passthrough or not. Of a parameter that is there twice the last one counts. Parameters of others are
    /// passed over; what is said of the parameters after `--` is not for the kernel.
    ///
    /// # Errors
    /// [`ParameterError`] for the first `iommu.` parameter that is wrong; for passthrough when there is no `trust`.
    pub fn parse(command_line: &str, trust: Option<Trust>) -> Result<Self, ParameterError> {
        let (mut settings, mut passthrough) = (Self::default(), false);
        for word in command_line.split_ascii_whitespace().take_while(|word| *word != "--") {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if name == "iommu" {
                // What else is there is about particular hardware.
                for option in value.split(',') {
                    match option {
                        "pt" => passthrough = true,
                        "nopt" => passthrough = false,
                        _ => {}
                    }
                }
            }
            let Some(name) = name.strip_prefix("iommu.") else { continue };
            match name {
                "passthrough" => passthrough = parse_bool("iommu.passthrough", value)?,
                "strict" => settings.lazy = !parse_bool("iommu.strict", value)?,
                "forcedac" => settings.forcedac = parse_bool("iommu.forcedac", value)?,
                _ => return Err(ParameterError::Unknown(word.into())),
            }
        }
        if passthrough {
            settings.passthrough = Some(trust.ok_or(ParameterError::NeedsTrust)?);
        }
        Ok(settings)
    }

    /// The type that these settings choose where nobody insists on one (Linux: `iommu_def_domain_type`).
    pub(crate) fn default_type(self) -> DomainType {
        match (self.passthrough, self.lazy) {
            (Some(Trust(())), _) => DomainType::Identity,
            (None, true) => DomainType::DmaFq,
            (None, false) => DomainType::Dma,
        }
    }
}

/// A truth value as Linux reads it: the first letter decides, after an `o` the second (Linux: `kstrtobool`).
fn parse_bool(parameter: &'static str, value: &str) -> Result<bool, ParameterError> {
    let mut letters = value.bytes().map(|letter| letter.to_ascii_lowercase());
    match (letters.next(), letters.next()) {
        (Some(b'1' | b'y' | b't'), _) | (Some(b'o'), Some(b'n')) => Ok(true),
        (Some(b'0' | b'n' | b'f'), _) | (Some(b'o'), Some(b'f')) => Ok(false),
        _ => Err(ParameterError::NotBool { parameter, value: value.into() }),
    }
}
