//! Linux's boot option for the pool.

use platform::PhysAddr;
use swiotlb::{Config, OptionError, SLOT_SIZE};

fn config(option: &str) -> Result<Option<Config>, OptionError> {
    Config::default().with_option(option)
}

#[test]
fn the_option_says_slots_areas_and_whether_to_bounce() {
    let default = Config::default();
    let with =
        |slots: usize, areas, force| Ok(Some(Config { size: slots * SLOT_SIZE, areas, force, ..default }));
    assert_eq!(default.size, 64 << 20, "32768 slots");
    assert_eq!(default.limit, PhysAddr::new(0xffff_ffff));
    assert_eq!(config("65536"), with(65536, 1, false));
    assert_eq!(config("65536,8"), with(65536, 8, false));
    assert_eq!(config("65536,force"), with(65536, 1, true));
    assert_eq!(config("65536,8,force"), with(65536, 8, true));
    assert_eq!(config("force"), with(32768, 1, true));
    assert_eq!(config("0x10000,010"), with(65536, 8, false), "as C writes numbers");
    assert_eq!(config("1"), with(128, 1, false), "whole segments");
    assert_eq!(config("129"), with(256, 1, false));
    for none in ["noforce", "65536,noforce", "65536,8,noforce"] {
        assert_eq!(config(none), Ok(None), "{none}");
    }
}

#[test]
fn what_the_option_leaves_out_stays_as_it_was() {
    let mine =
        Config { size: 1 << 20, areas: 4, limit: PhysAddr::new(u64::MAX), max_size: 8 << 20, force: true };
    assert_eq!(mine.with_option("1024"), Ok(Some(Config { size: 2 << 20, ..mine })));
    assert_eq!(mine.with_option("force"), Ok(Some(mine)));
}

#[test]
fn a_wrong_word_is_named() {
    for (option, word) in [
        ("", ""),
        ("1024,", ""),
        (",8", ""),
        (",force", ""),
        ("many", "many"),
        ("-1", "-1"),
        ("+1", "+1"),
        ("0x", "0x"),
        ("0x+1", "0x+1"),
        ("08", "08"),
        ("1024,8,16", "16"),
        ("1024,8,16,force", "16"),
        ("force,1024", "force"),
        ("1024,Force", "Force"),
    ] {
        assert_eq!(config(option), Err(OptionError::Unexpected(word.into())), "swiotlb={option}");
    }
    for (option, word) in [
        ("0", "0"),
        ("1024,0", "0"),
        ("0xffffffffffffffff", "0xffffffffffffffff"),
        ("99999999999999999999", "99999999999999999999"),
        ("9007199254740992", "9007199254740992"),
    ] {
        assert_eq!(config(option), Err(OptionError::OutOfRange(word.into())), "swiotlb={option}");
    }
    let message = config("1024,8,16").unwrap_err().to_string();
    assert!(message.contains("swiotlb") && message.contains("16"), "{message}");
}
