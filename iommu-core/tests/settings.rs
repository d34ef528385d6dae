//! Linux's kernel parameters.

use iommu_core::{ParameterError, Settings, Trust};

fn parse(line: &str) -> Result<Settings, ParameterError> {
    Settings::parse(line, None)
}

#[test]
fn each_parameter_has_its_setting() {
    assert_eq!(parse(""), Ok(Settings::default()));
    assert!(parse("iommu.strict=0").unwrap().lazy);
    assert!(!parse("iommu.strict=1").unwrap().lazy);
    assert!(parse("iommu.forcedac=1").unwrap().forcedac);
    assert!(!parse("iommu.forcedac=0").unwrap().forcedac);
    let both = parse("quiet iommu.forcedac=1  iommu.strict=0 root=/dev/nvme0n1").unwrap();
    assert_eq!(both, Settings { lazy: true, forcedac: true, passthrough: None });
}

#[test]
fn passthrough_takes_trust() {
    assert_eq!(parse("iommu.passthrough=1"), Err(ParameterError::NeedsTrust));
    // SAFETY: nothing is made of these settings.
    let trust = unsafe { Trust::new() };
    let settings = Settings::parse("iommu.passthrough=1", Some(trust)).unwrap();
    assert_eq!(settings, Settings { passthrough: Some(trust), ..Settings::default() });
    assert_eq!(Settings::parse("iommu.passthrough=0", Some(trust)), Ok(Settings::default()));
}

#[test]
fn of_a_parameter_that_is_there_twice_the_last_counts() {
    assert!(!parse("iommu.strict=0 iommu.strict=1").unwrap().lazy);
    assert_eq!(parse("iommu.passthrough=1 iommu.passthrough=0"), Ok(Settings::default()));
}

#[test]
fn truth_is_written_as_in_linux() {
    for yes in ["1", "y", "Y", "yes", "t", "true", "on", "ON"] {
        assert!(parse(&format!("iommu.forcedac={yes}")).unwrap().forcedac, "{yes}");
    }
    for no in ["0", "n", "N", "no", "f", "false", "off", "Of"] {
        assert!(!parse(&format!("iommu.forcedac={no} ")).unwrap().forcedac, "{no}");
    }
    for neither in ["", "2", "o", "maybe", "-1", "\u{e9}"] {
        let wrong = ParameterError::NotBool { parameter: "iommu.forcedac", value: neither.into() };
        assert_eq!(parse(&format!("iommu.forcedac={neither}")), Err(wrong));
    }
    assert_eq!(
        parse("iommu.strict").unwrap_err().to_string(),
        "iommu.strict is neither yes nor no: \"\"",
        "a parameter without a value"
    );
}

#[test]
fn what_is_not_for_the_iommu_is_passed_over() {
    let line = "swiotlb=65536 iommux.strict=0 foo.iommu.strict=0 -- iommu.strict=0 iommu.nonsense";
    assert_eq!(parse(line), Ok(Settings::default()));
    assert_eq!(parse("iommu.nonsense=1"), Err(ParameterError::Unknown("iommu.nonsense=1".into())));
}

#[test]
fn x86_has_short_words_for_passthrough() {
    // SAFETY: nothing is ever attached.
    let trust = Some(unsafe { Trust::new() });
    let passthrough = |line| Settings::parse(line, trust).unwrap().passthrough;
    assert_eq!(passthrough("iommu=pt"), trust);
    assert_eq!(passthrough("iommu=soft,pt,panic"), trust);
    assert_eq!(passthrough("iommu=pt iommu=nopt"), None);
    assert_eq!(passthrough("iommu.passthrough=1 iommu=nopt"), None);
    assert_eq!(passthrough("iommu=pt iommu.passthrough=0"), None);
    assert_eq!(passthrough("iommu=ptx amd_iommu=pt iommu"), None);
    assert_eq!(parse("iommu=pt"), Err(ParameterError::NeedsTrust));
}
