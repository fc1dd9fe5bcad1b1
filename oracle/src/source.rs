//! The source that generated statements are judged for: a stock server, and what the generator's names mean.
//!
//! Invariant: each harmful name that the grammar uses is in it, so that a call the guard overlooks is found.

use fedgate::sql::catalogue::{
    Builder, Catalogue, FunctionKind, FunctionRow, OperatorRow, TypeRow, Volatility,
};

/// A stock server of this major version with functions, operators and types of a schema.
///
/// # Panics
/// When no catalogue of this version is in the binary.
#[must_use]
pub fn catalogue(version: u32) -> Catalogue {
    let mut builder = Catalogue::stock_rows(version).expect("a stock catalogue");
    functions(&mut builder);
    operator(&mut builder, "<->", "distance", Volatility::Immutable);
    operator(&mut builder, "===>", "log_visit", Volatility::Volatile);
    types(&mut builder);
    builder.build()
}

fn functions(builder: &mut Builder) {
    use FunctionKind::{Aggregate, Function};
    use Volatility::{Immutable, Volatile};
    for (name, kind, volatility, one_argument) in [
        ("st_asbinary", Function, Immutable, true),
        ("log_visit", Function, Volatile, true),
        ("touch", Function, Volatile, true),
        ("relevé", Function, Volatile, true),
        ("tally", Aggregate, Volatile, true),
        ("score", Function, Immutable, true),
        ("score", Function, Volatile, false),
    ] {
        builder.function(FunctionRow {
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind,
            volatility,
            one_argument,
        });
    }
}

fn operator(builder: &mut Builder, symbol: &str, function: &str, volatility: Volatility) {
    builder.operator(OperatorRow {
        symbol: symbol.to_owned(),
        function_schema: "public".to_owned(),
        function: function.to_owned(),
        volatility,
    });
}

fn types(builder: &mut Builder) {
    for (oid, name, parts, volatile_function, check) in [
        (20_001, "mood", vec![], None, None),
        (20_003, "communes", vec![20_002], None, None),
        (20_002, "email", vec![], None, Some("CHECK ((VALUE ~ '@'::text))")),
        (20_005, "audited", vec![], None, Some("CHECK (public.log_visit(VALUE))")),
        (20_007, "noisy", vec![], Some("noisy_in"), None),
    ] {
        builder.r#type(TypeRow {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            parts,
            volatile_function: volatile_function.map(str::to_owned),
            checks: check.map(str::to_owned).into_iter().collect(),
        });
    }
}
