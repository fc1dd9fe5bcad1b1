//! What a stored expression runs: the OIDs in the text of a `pg_node_tree`.
//!
//! Invariant: every OID behind a label that names something runnable is found, in whatever node it
//! stands, so that a node of a later version is not overlooked.
//! Source: PostgreSQL, `src/backend/nodes/outfuncs.c` and `pg_strtok` of `read.c`.

/// What a stored expression refers to; each list without repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub functions: Box<[u32]>,
    pub operators: Box<[u32]>,
    /// Tables and views that it reads.
    pub relations: Box<[u32]>,
    /// Types of which it makes values by their input functions or CHECK constraints.
    pub types: Box<[u32]>,
    /// It draws from a sequence.
    pub draws: bool,
}

/// Labels of `pg_proc` OIDs. `opfuncid` may be 0 in a stored tree; then `opno` tells.
const FUNCTIONS: &[&str] = &[
    "funcid",
    "opfuncid",
    "aggfnoid",
    "winfnoid",
    "hashfuncid",
    "negfuncid",
    "tsmhandler",
    "startInRangeFunc",
    "endInRangeFunc",
];
/// Labels of `pg_operator` OIDs; `opnos` is a list.
const OPERATORS: &[&str] = &["opno", "opnos", "eqop", "sortop", "cycle_mark_neop", "aggsortop"];

/// Labels of `pg_type` OIDs whose values are made, by the node in which they mean that.
const TYPES: &[(&str, &str)] = &[
    ("COERCETODOMAIN", "resulttype"),
    ("COERCEVIAIO", "resulttype"),
    ("JSONRETURNING", "typid"),
    ("TABLEFUNC", "coltypes"),
];

/// Reads the text of a `pg_node_tree`.
pub fn references(text: &str) -> References {
    let (mut functions, mut operators, mut relations, mut types) = (vec![], vec![], vec![], vec![]);
    let mut draws = false;
    let mut nodes: Vec<&str> = Vec::new();
    let mut opened = false;
    let mut label = "";
    let mut listed = false;
    for token in Tokens(text) {
        match token {
            "{" => {
                opened = true;
                label = "";
                continue;
            }
            "}" => {
                nodes.pop();
                label = "";
            }
            "(" if !label.is_empty() => listed = true,
            ")" => {
                listed = false;
                label = "";
            }
            tag if opened => {
                nodes.push(tag);
                draws |= tag == "NEXTVALUEEXPR";
            }
            token if token.starts_with(':') => {
                label = token.get(1..).unwrap_or_default();
                listed = false;
            }
            // The marks of a list of OIDs or of numbers.
            "o" | "i" if listed => {}
            value => {
                match value.parse() {
                    Ok(0) | Err(_) => {}
                    Ok(oid) if FUNCTIONS.contains(&label) => functions.push(oid),
                    Ok(oid) if OPERATORS.contains(&label) => operators.push(oid),
                    Ok(oid) if label == "relid" => relations.push(oid),
                    Ok(oid) => {
                        if nodes.last().is_some_and(|node| TYPES.contains(&(node, label))) {
                            types.push(oid);
                        }
                    }
                }
                if !listed {
                    label = "";
                }
            }
        }
        opened = false;
    }
    References {
        functions: once(functions),
        operators: once(operators),
        relations: once(relations),
        types: once(types),
        draws,
    }
}

fn once(mut oids: Vec<u32>) -> Box<[u32]> {
    oids.sort_unstable();
    oids.dedup();
    oids.into()
}

/// Splits as `pg_strtok` does: at white space and around brackets, where no backslash stands before.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start_matches([' ', '\n', '\t']);
        let bytes = rest.as_bytes();
        let mut end = match bytes.first()? {
            b'(' | b')' | b'{' | b'}' => 1,
            _ => 0,
        };
        if end == 0 {
            while let Some(byte) = bytes.get(end) {
                match byte {
                    b'\\' => end += 2,
                    b'(' | b')' | b'{' | b'}' | b' ' | b'\n' | b'\t' => break,
                    _ => end += 1,
                }
            }
            // Behind a backslash may stand a letter of several bytes, or nothing.
            end = end.min(rest.len());
            while !rest.is_char_boundary(end) {
                end += 1;
            }
        }
        let (token, left) = rest.split_at(end);
        self.0 = left;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_found_in_any_node() {
        let tree = r"({QUERY :rtable ({RTE :alias {ALIAS :aliasname :funcid :colnames (a\ b \{x)} :relid 16400 :inh true}
            {RANGETBLENTRY :relid 12345 :tablesample {TABLESAMPLECLAUSE :tsmhandler 3313 :args <>}}) :targetList
            ({TARGETENTRY :expr {COERCETODOMAIN :arg {FUNCEXPR :funcid 870 :funcresulttype 25 :args ({OPEXPR
            :opno 98 :opfuncid 0 :opresulttype 16}) :location -1} :resulttype 16385 :resulttypmod -1}}
            {TARGETENTRY :expr {ROWCOMPAREEXPR :opnos (o 97 664) :opfamilies (o 1976 1994)}}
            {TARGETENTRY :expr {RELABELTYPE :arg {CONST :consttype 25 :constvalue 5 [ 20 0 0 0 120 ]} :resulttype 1043}}
            {SORTGROUPCLAUSE :eqop 96 :sortop 97}))";
        assert_eq!(
            references(tree),
            References {
                functions: [870, 3313].into(),
                operators: [96, 97, 98, 664].into(),
                relations: [12345, 16400].into(),
                types: [16385].into(),
                draws: false,
            }
        );
    }

    #[test]
    fn any_text_is_read_to_its_end() {
        for text in
            ["", "{", "}}", "\\", ":funcid", "{FUNCEXPR :funcid", ":funcid 99999999999", "é\\é{", ")("]
        {
            assert_eq!(references(text), References::default(), "{text}");
        }
        assert!(references("{NEXTVALUEEXPR :seqid 5}").draws);
    }
}
