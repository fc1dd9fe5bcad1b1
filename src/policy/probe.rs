//! Questions with known answers, to ask an OPA what it really enforces.
//!
//! Invariant: pure. The answer is made here of the document, not of the Rego that OPA evaluates, so that the two can
//! differ; nobody that the document names is asked about.

use serde_json::{Value, json};

/// A user whom no document should name: whoever is nobody sees the most masked view.
pub const NOBODY: &str = "fedgate-probe\u{2063}";

/// A column that is masked for whoever is nobody, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub catalog: String,
    pub schema: String,
    pub table: String,
    pub column: String,
    /// The expression that has to come back for a `varchar`.
    pub want: String,
}

/// What an OPA's answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Masked,
    /// Another expression than the one that has to come back.
    Differs,
    /// No expression at all: the column would be seen as it is.
    Clear,
}

impl Question {
    /// The body of a request to `/v1/data/…/batchColumnMasks`, for a user of this name.
    pub fn input(&self, user: &str) -> Value {
        json!({"input": {
            "context": {"identity": {"user": user, "groups": []}, "softwareStack": {"trinoVersion": "fedgate"}},
            "action": {"operation": "GetColumnMask", "filterResources": [{"column": {
                "catalogName": self.catalog, "schemaName": self.schema, "tableName": self.table,
                "columnName": self.column, "columnType": "varchar",
            }}]},
        }})
    }

    /// What came back, as OPA's REST API wraps it.
    pub fn judge(&self, answer: &Value) -> Answer {
        let masks = answer.get("result").and_then(Value::as_array);
        let of_first = |mask: &&Value| mask.get("index").and_then(Value::as_u64) == Some(0);
        let expression = masks
            .and_then(|masks| masks.iter().find(of_first))
            .and_then(|mask| mask.pointer("/viewExpression/expression"))
            .and_then(Value::as_str);
        match expression {
            None => Answer::Clear,
            Some(expression) if expression == self.want => Answer::Masked,
            Some(_) => Answer::Differs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let question = Question {
            catalog: "c".into(),
            schema: "s".into(),
            table: "t".into(),
            column: "e".into(),
            want: "CAST(NULL AS varchar)".into(),
        };
        let cases = [
            (
                json!({"result": [{"index": 0, "viewExpression": {"expression": "CAST(NULL AS varchar)"}}]}),
                Answer::Masked,
            ),
            (json!({"result": [{"index": 0, "viewExpression": {"expression": "NULL"}}]}), Answer::Differs),
            (
                json!({"result": [{"index": 1, "viewExpression": {"expression": "CAST(NULL AS varchar)"}}]}),
                Answer::Clear,
            ),
            (json!({"result": []}), Answer::Clear),
            (json!({}), Answer::Clear),
            (json!("no object"), Answer::Clear),
        ];
        for (answer, want) in cases {
            assert_eq!(question.judge(&answer), want, "{answer}");
        }
    }
}
