//! How many mappings are checked word by word. The reference has 242, each confirmed by another implementation; two of them are
//! MediaTek's with tables above 4 GiB, which the engine refuses: the link between two tables of 32-bit entries that wait to be freed
//! would read as an entry there.

/// Golden tests, and the mappings in each.
const GOLDEN: [(&str, usize); 11] = [
    (include_str!("golden_amdv1.rs"), 15),
    (include_str!("golden_arm_lpae_s1.rs"), 56),
    (include_str!("golden_arm_lpae_s2.rs"), 40),
    (include_str!("golden_arm_v7s.rs"), 21),
    (include_str!("golden_dart.rs"), 20),
    (include_str!("golden_linux_mock.rs"), 5),
    (include_str!("golden_mali_lpae.rs"), 8),
    (include_str!("golden_mock2k.rs"), 12),
    (include_str!("golden_riscv.rs"), 30),
    (include_str!("golden_vtdss.rs"), 15),
    (include_str!("golden_x86_64.rs"), 18),
];

#[test]
fn no_mapping_of_the_reference_is_left_out() {
    for (source, count) in GOLDEN {
        assert_eq!(
            source.matches("Case {\n").count(),
            count,
            "{}",
            source.lines().next().unwrap_or_default()
        );
    }
    assert_eq!(GOLDEN.map(|(_, count)| count).iter().sum::<usize>(), 242 - 2);
}
