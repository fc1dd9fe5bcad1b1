//! Catalogues of freshly made servers, in the binary, for judging offline.
//!
//! Invariant: a line that does not read as it was written is an error, never a gap.
//!
//! Lines, fields parted by a tab: `f schema name kind volatility one-argument`,
//! `o symbol schema function volatility`, `s symbol` (an operator's, all there are),
//! `t schema name volatile-function check…`.

use std::fmt::Write as _;

use super::{Builder, Catalogue, FunctionKind, FunctionRow, OperatorRow, TypeRow, Volatility};

/// Major versions whose stock catalogue is in the binary.
pub const STOCK_VERSIONS: &[(u32, &str)] = &[
    (14, include_str!("../stock/14.txt")),
    (15, include_str!("../stock/15.txt")),
    (16, include_str!("../stock/16.txt")),
    (17, include_str!("../stock/17.txt")),
    (18, include_str!("../stock/18.txt")),
];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StockError {
    #[error("there is no stock catalogue of PostgreSQL {0}; there are 14 to 18")]
    Version(u32),
    #[error("line {0} of the catalogue does not read as one")]
    Line(usize),
}

impl FunctionKind {
    fn letter(self) -> &'static str {
        match self {
            Self::Function => "f",
            Self::Procedure => "p",
            Self::Aggregate => "a",
            Self::Window => "w",
        }
    }

    /// Of `pg_proc.prokind`; `None` for a kind that no version up to 18 has.
    pub fn from_letter(letter: &str) -> Option<Self> {
        match letter {
            "f" => Some(Self::Function),
            "p" => Some(Self::Procedure),
            "a" => Some(Self::Aggregate),
            "w" => Some(Self::Window),
            _ => None,
        }
    }
}

impl Volatility {
    fn letter(self) -> &'static str {
        match self {
            Self::Immutable => "i",
            Self::Stable => "s",
            Self::Volatile => "v",
        }
    }

    /// Of `pg_proc.provolatile`; what is not known is volatile.
    pub fn from_letter(letter: &str) -> Self {
        match letter {
            "i" => Self::Immutable,
            "s" => Self::Stable,
            _ => Self::Volatile,
        }
    }
}

impl Catalogue {
    /// The catalogue of a freshly made server of this major version.
    pub fn stock(version: u32) -> Result<Self, StockError> {
        Ok(Self::stock_rows(version)?.build())
    }

    /// The rows of [`Self::stock`], to which others may be added.
    pub fn stock_rows(version: u32) -> Result<Builder, StockError> {
        let text = STOCK_VERSIONS.iter().find(|(known, _)| *known == version).map(|(_, text)| *text);
        Self::rows_of_text(text.ok_or(StockError::Version(version))?)
    }

    /// Reads lines as [`Builder::to_text`] writes them.
    pub fn rows_of_text(text: &str) -> Result<Builder, StockError> {
        let mut builder = Self::builder();
        for (number, line) in text.lines().enumerate() {
            if !line.starts_with('#') {
                read(&mut builder, line).ok_or(StockError::Line(number + 1))?;
            }
        }
        Ok(builder)
    }
}

fn read(builder: &mut Builder, line: &str) -> Option<()> {
    let mut fields = line.split('\t');
    let kind = fields.next()?;
    let mut field = || fields.next().map(str::to_owned);
    match kind {
        "f" => builder.function(FunctionRow {
            schema: field()?,
            name: field()?,
            kind: FunctionKind::from_letter(&field()?)?,
            volatility: Volatility::from_letter(&field()?),
            one_argument: field()? == "1",
        }),
        "o" => builder.operator(OperatorRow {
            symbol: field()?,
            function_schema: field()?,
            function: field()?,
            volatility: Volatility::from_letter(&field()?),
        }),
        "s" => builder.symbol(&field()?),
        "t" => {
            let schema = field()?;
            let name = field()?;
            let volatile_function = field().filter(|name| !name.is_empty());
            let checks = fields.map(str::to_owned).collect();
            builder.r#type(TypeRow { oid: 0, schema, name, parts: Vec::new(), volatile_function, checks });
        }
        _ => return None,
    }
    Some(())
}

impl Builder {
    /// The rows as lines, sorted. What types are made of is left out: stock types have no parts that
    /// would need judging.
    pub fn to_text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for (row, _) in &self.functions {
            let one = u8::from(row.one_argument);
            lines.push(format!(
                "f\t{}\t{}\t{}\t{}\t{one}",
                row.schema,
                row.name,
                row.kind.letter(),
                row.volatility.letter()
            ));
        }
        for row in &self.operators {
            lines.push(format!(
                "o\t{}\t{}\t{}\t{}",
                row.symbol,
                row.function_schema,
                row.function,
                row.volatility.letter()
            ));
        }
        lines.extend(self.symbols.iter().map(|symbol| format!("s\t{symbol}")));
        for row in &self.types {
            let mut line = format!("t\t{}\t{}", row.schema, row.name);
            if row.volatile_function.is_some() || !row.checks.is_empty() {
                let _ = write!(line, "\t{}", row.volatile_function.as_deref().unwrap_or_default());
            }
            for check in &row.checks {
                let _ = write!(line, "\t{check}");
            }
            lines.push(line);
        }
        lines.sort_unstable();
        lines.dedup();
        lines.push(String::new());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stock_catalogue_reads() {
        for (version, _) in STOCK_VERSIONS {
            let catalogue = Catalogue::stock(*version).unwrap();
            assert!(catalogue.functions("lower").iter().all(|function| function.harm.is_none()));
            assert!(catalogue.functions("nextval").iter().all(|function| function.harm.is_some()));
            assert!(!catalogue.types("int4").is_empty(), "{version}");
            // What syntax says without writing it is there, too.
            for symbol in ["=", "<>", "*", "~~", "!~~*", "->>", "@?", "^@", "|/"] {
                assert!(catalogue.knows_operator(symbol), "{version} {symbol}");
            }
            assert!(!catalogue.knows_operator("=?="));
        }
        assert_eq!(Catalogue::stock(9).unwrap_err(), StockError::Version(9));
    }

    #[test]
    fn a_broken_line_is_an_error() {
        assert_eq!(Catalogue::rows_of_text("f\tpg_catalog\n").unwrap_err(), StockError::Line(1));
    }
}
