//! What `EXPLAIN (FORMAT JSON)` says: what a statement would cost, and where most of that goes.
//!
//! Invariant: nothing here performs I/O, and what cannot be read is nothing, never a guess.

use serde_json::Value;

/// Of one name that a node carries, in characters.
const LONGEST_NAME: usize = 63;

/// The planner's own estimate of one statement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Estimate {
    /// In the planner's units.
    pub(super) cost: f64,
    /// The node that adds most to it, in words.
    pub(super) costliest: String,
}

impl Estimate {
    /// Reads the one column of the one row of `EXPLAIN (FORMAT JSON)`.
    pub(super) fn read(json: &str) -> Option<Self> {
        let explained: Value = serde_json::from_str(json).ok()?;
        let root = explained.get(0)?.get("Plan")?;
        let cost = number(root, "Total Cost")?;
        let mut costliest: Option<(f64, &Value)> = None;
        let mut left = vec![root];
        while let Some(node) = left.pop() {
            let below = node.get("Plans").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let costs_below: f64 = below.iter().filter_map(|node| number(node, "Total Cost")).sum();
            // Below a LIMIT or in a semi-join, a part may cost more than the whole.
            let own = (number(node, "Total Cost")? - costs_below).max(0.0);
            if costliest.is_none_or(|(most, _)| own > most) {
                costliest = Some((own, node));
            }
            left.extend(below);
        }
        let (own, node) = costliest?;
        Some(Self { cost, costliest: describe(node, own) })
    }
}

fn number(node: &Value, key: &str) -> Option<f64> {
    node.get(key)?.as_f64().filter(|number| number.is_finite() && *number >= 0.0)
}

fn describe(node: &Value, own: f64) -> String {
    let text = |key: &str| {
        let text = node.get(key).and_then(Value::as_str)?;
        Some(text.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect::<String>())
    };
    let mut words = text("Node Type").unwrap_or_else(|| "a node without a name".to_owned());
    if let Some(relation) =
        text("Relation Name").or_else(|| text("Function Name")).or_else(|| text("CTE Name"))
    {
        words.push_str(&format!(" on {relation}"));
    }
    let rows =
        number(node, "Plan Rows").map_or_else(String::new, |rows| format!(", about {} rows", figure(rows)));
    format!("{words}, which alone costs {}{rows}", figure(own))
}

/// A number as people read it: whole, and in powers of ten when it is long.
pub(super) fn figure(number: f64) -> String {
    if number >= 1e15 { format!("{number:.3e}") } else { format!("{number:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_costliest_node_is_the_one_that_adds_most() {
        let cases = [
            (
                r#"[{"Plan":{"Node Type":"Result","Startup Cost":0.00,"Total Cost":0.01,"Plan Rows":1,"Plan Width":4}}]"#,
                Some((0.01, "Result, which alone costs 0, about 1 rows")),
            ),
            (
                r#"[{"Plan":{"Node Type":"Nested Loop","Total Cost":1250036.50,"Plan Rows":100000000,"Plans":[
                    {"Node Type":"Seq Scan","Relation Name":"t","Total Cost":145.00,"Plan Rows":10000},
                    {"Node Type":"Materialize","Total Cost":195.00,"Plan Rows":10000,"Plans":[
                        {"Node Type":"Seq Scan","Relation Name":"u","Total Cost":145.00,"Plan Rows":10000}]}]}}]"#,
                Some((1_250_036.5, "Nested Loop, which alone costs 1249696, about 100000000 rows")),
            ),
            // The part under a LIMIT costs more than the whole.
            (
                r#"[{"Plan":{"Node Type":"Limit","Total Cost":1.5,"Plan Rows":1,"Plans":[
                    {"Node Type":"Seq Scan","Relation Name":"big","Total Cost":9e20,"Plan Rows":1e18}]}}]"#,
                Some((1.5, "Seq Scan on big, which alone costs 9.000e20, about 1.000e18 rows")),
            ),
            (
                r#"[{"Plan":{"Node Type":"Function Scan","Function Name":"generate_series","Total Cost":10,"Plan Rows":1000}}]"#,
                Some((10.0, "Function Scan on generate_series, which alone costs 10, about 1000 rows")),
            ),
            ("[]", None),
            ("", None),
            (r#"[{"Plan":{"Node Type":"Result"}}]"#, None),
            (r#"[{"Plan":{"Node Type":"Result","Total Cost":"much"}}]"#, None),
            (r#"[{"Plan":{"Node Type":"Result","Total Cost":-1}}]"#, None),
            (r#"[{"Plan":{"Total Cost":3,"Plans":[{"Total Cost":null}]}}]"#, None),
        ];
        for (json, wanted) in cases {
            let read = Estimate::read(json);
            let read = read.as_ref().map(|read| (read.cost, read.costliest.as_str()));
            assert_eq!(read, wanted, "{json}");
        }
    }

    #[test]
    fn names_are_bounded_and_on_one_line() {
        let json = format!(
            r#"[{{"Plan":{{"Node Type":"Seq Scan","Relation Name":"a\n{}","Total Cost":1}}}}]"#,
            "x".repeat(10_000)
        );
        let costliest = Estimate::read(&json).unwrap().costliest;
        assert!(costliest.len() < 200 && !costliest.contains('\n'), "{costliest}");
    }
}
