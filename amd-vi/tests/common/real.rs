//! Tables of real machines, which not every clone has.

use std::path::PathBuf;

/// How many there are.
const KNOWN: usize = 63;

/// What was found of them.
pub struct RealTables {
    folder: PathBuf,
    tables: Vec<RealTable>,
}

/// One machine's tables, with what another parser says of them.
pub struct RealTable {
    pub ivrs: Vec<u8>,
    pub madt: Vec<u8>,
    /// The manifest's line: names and values.
    fields: Vec<(String, String)>,
}

impl RealTables {
    /// Those in `ivrs/` of the folder that `REAL_DATA` names, else of `../shared/real`.
    pub fn open() -> Self {
        let folder = std::env::var_os("REAL_DATA")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real")))
            .join("ivrs");
        let manifest = std::fs::read_to_string(folder.join("manifest.tsv")).unwrap_or_default();
        let mut lines = manifest.lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
        let read = |line: &str| {
            let fields = names.iter().map(|name| name.to_string()).zip(line.split('\t').map(str::to_owned));
            let mut table = RealTable { ivrs: Vec::new(), madt: Vec::new(), fields: fields.collect() };
            let path = folder.join(table.file());
            table.ivrs = std::fs::read(&path).ok()?;
            table.madt = std::fs::read(path.with_extension("APIC")).ok()?;
            Some(table)
        };
        let tables = lines.filter_map(read).collect();
        Self { folder, tables }
    }

    pub fn iter(&self) -> impl Iterator<Item = &RealTable> {
        self.tables.iter()
    }

    /// Says how many there were, and how many not.
    pub fn report(&self, what: &str) {
        let found = self.tables.len();
        let missing = KNOWN.saturating_sub(found);
        println!("{found} real tables {what}, {missing} not found in {}", self.folder.display());
    }
}

impl RealTable {
    /// What the manifest says.
    pub fn field(&self, name: &str) -> &str {
        let field = self.fields.iter().find(|(of, _)| of == name);
        &field.unwrap_or_else(|| panic!("the manifest has no column {name}")).1
    }

    pub fn file(&self) -> &str {
        self.field("file")
    }
}
