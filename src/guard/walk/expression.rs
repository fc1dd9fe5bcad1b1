//! The walk over expressions.
//!
//! Invariant: every operand is walked; syntax that stands for a call is looked up as that call.

use sqlparser::ast::{
    AccessExpr, Array, CaseWhen, CastKind, Expr, ExtractSyntax, Interval, Subscript, TypedString, Value,
    ValueWithSpan,
};

use super::{Result, Walk, foreign, name, offset};
use crate::guard::types;

impl Walk<'_> {
    pub(super) fn optional(&self, expr: Option<&Expr>) -> Result {
        expr.map_or(Ok(()), |expr| self.expr(expr))
    }

    pub(super) fn exprs(&self, exprs: &[Expr]) -> Result {
        exprs.iter().try_for_each(|expr| self.expr(expr))
    }

    pub(super) fn lists(&self, lists: &[Vec<Expr>]) -> Result {
        lists.iter().try_for_each(|list| self.exprs(list))
    }

    /// Chains of operators lean to the left, so the left operand is walked in a loop.
    pub(in crate::guard) fn expr(&self, expr: &Expr) -> Result {
        let mut next = expr;
        loop {
            next = match next {
                Expr::BinaryOp { left, op, right } => {
                    self.binary_operator(op)?;
                    self.expr(right)?;
                    left
                }
                Expr::Cast { kind, expr, data_type, format } => {
                    match kind {
                        CastKind::Cast | CastKind::DoubleColon => {}
                        CastKind::TryCast | CastKind::SafeCast => return foreign("this kind of cast"),
                    }
                    if format.is_some() {
                        return foreign("CAST … FORMAT");
                    }
                    types::data_type(&self.names, data_type)?;
                    expr
                }
                Expr::Like { negated: _, any: _, expr, pattern, escape_char }
                | Expr::ILike { negated: _, any: _, expr, pattern, escape_char }
                | Expr::SimilarTo { negated: _, expr, pattern, escape_char } => {
                    self.expr(pattern)?;
                    self.optional(escape_char.as_deref())?;
                    expr
                }
                Expr::AtTimeZone { timestamp, time_zone } => {
                    self.names.function(&["timezone"], false, true, None)?;
                    self.expr(time_zone)?;
                    timestamp
                }
                Expr::IsFalse(expr)
                | Expr::IsNotFalse(expr)
                | Expr::IsTrue(expr)
                | Expr::IsNotTrue(expr)
                | Expr::IsNull(expr)
                | Expr::IsNotNull(expr)
                | Expr::IsUnknown(expr)
                | Expr::IsNotUnknown(expr)
                | Expr::Nested(expr)
                | Expr::IsNormalized { expr, form: _, negated: _ }
                | Expr::IsJson { expr, kind: _, unique_keys: _, negated: _ } => expr,
                Expr::UnaryOp { op, expr } => {
                    self.unary_operator(op)?;
                    expr
                }
                other => return self.operand(other),
            };
        }
    }

    /// What `expr` does not walk itself.
    pub(super) fn operand(&self, expr: &Expr) -> Result {
        match expr {
            Expr::BinaryOp { left: _, op: _, right: _ }
            | Expr::Cast { kind: _, expr: _, data_type: _, format: _ }
            | Expr::Like { negated: _, any: _, expr: _, pattern: _, escape_char: _ }
            | Expr::ILike { negated: _, any: _, expr: _, pattern: _, escape_char: _ }
            | Expr::SimilarTo { negated: _, expr: _, pattern: _, escape_char: _ }
            | Expr::AtTimeZone { timestamp: _, time_zone: _ }
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::Nested(_)
            | Expr::IsNormalized { expr: _, form: _, negated: _ }
            | Expr::IsJson { expr: _, kind: _, unique_keys: _, negated: _ }
            | Expr::UnaryOp { op: _, expr: _ } => foreign("this expression"),
            Expr::Identifier(ident) => name(ident),
            Expr::CompoundIdentifier(idents) => match idents.split_last() {
                Some((last, before)) if (1..=3).contains(&before.len()) => {
                    before.first().map_or(Ok(()), name)?;
                    self.names.attribute(&last.value, offset(last.span))
                }
                _ => foreign("this kind of name"),
            },
            Expr::CompoundFieldAccess { root, access_chain } => {
                self.expr(root)?;
                access_chain.iter().try_for_each(|access| self.access(access))
            }
            Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
                self.expr(left)?;
                self.expr(right)
            }
            Expr::InList { expr, list, negated: _ } => {
                self.expr(expr)?;
                self.exprs(list)
            }
            Expr::InSubquery { expr, subquery, negated: _ } => {
                self.expr(expr)?;
                self.query(subquery)
            }
            Expr::Between { expr, negated: _, low, high } => {
                self.expr(expr)?;
                self.expr(low)?;
                self.expr(high)
            }
            Expr::AnyOp { left, compare_op, right, is_some: _ } | Expr::AllOp { left, compare_op, right } => {
                self.binary_operator(compare_op)?;
                self.expr(left)?;
                self.expr(right)
            }
            Expr::Extract { field: _, syntax, expr } => {
                match syntax {
                    ExtractSyntax::From => {}
                    ExtractSyntax::Comma => return foreign("EXTRACT with a comma"),
                }
                self.expr(expr)
            }
            Expr::Position { expr, r#in } => {
                self.names.function(&["position"], false, true, None)?;
                self.expr(expr)?;
                self.expr(r#in)
            }
            Expr::Substring { expr, substring_from, substring_for, special: _, shorthand: _ } => {
                // With commas it is an ordinary call, and the tree does not tell.
                self.names.function(&["substring"], false, true, None)?;
                self.expr(expr)?;
                self.optional(substring_from.as_deref())?;
                self.optional(substring_for.as_deref())
            }
            Expr::Trim { trim_where: _, trim_what, expr, trim_characters } => {
                for name in ["btrim", "ltrim", "rtrim"] {
                    self.names.function(&[name], false, true, None)?;
                }
                self.optional(trim_what.as_deref())?;
                self.expr(expr)?;
                self.exprs(trim_characters.as_deref().unwrap_or_default())
            }
            Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
                self.names.function(&["overlay"], false, true, None)?;
                self.expr(expr)?;
                self.expr(overlay_what)?;
                self.expr(overlay_from)?;
                self.optional(overlay_for.as_deref())
            }
            Expr::Collate { expr, collation } => {
                self.reference(collation)?;
                self.expr(expr)
            }
            Expr::Value(value) => self.value(value),
            Expr::TypedString(TypedString { data_type, value, uses_odbc_syntax }) => {
                if *uses_odbc_syntax {
                    return foreign("ODBC syntax");
                }
                types::data_type(&self.names, data_type)?;
                self.value(value)
            }
            Expr::Function(function) => self.function(function),
            Expr::Case { case_token: _, end_token: _, operand, conditions, else_result } => {
                self.optional(operand.as_deref())?;
                for CaseWhen { condition, result } in conditions {
                    self.expr(condition)?;
                    self.expr(result)?;
                }
                self.optional(else_result.as_deref())
            }
            Expr::Exists { subquery, negated: _ } | Expr::Subquery(subquery) => self.query(subquery),
            Expr::GroupingSets(lists) | Expr::Cube(lists) | Expr::Rollup(lists) => self.lists(lists),
            Expr::Tuple(exprs) => self.exprs(exprs),
            Expr::Array(array) => self.array(array),
            Expr::Interval(interval) => {
                let Interval {
                    value,
                    leading_field: _,
                    leading_precision: _,
                    last_field: _,
                    fractional_seconds_precision: _,
                } = interval;
                self.names.r#type(&["interval"], None)?;
                self.expr(value)
            }
            Expr::Wildcard(_) => Ok(()),
            Expr::QualifiedWildcard(name, _) => self.reference(name),
            Expr::JsonAccess { value: _, path: _ }
            | Expr::InUnnest { expr: _, array_expr: _, negated: _ }
            | Expr::RLike { negated: _, expr: _, pattern: _, regexp: _ }
            | Expr::Convert {
                is_try: _,
                expr: _,
                data_type: _,
                charset: _,
                target_before_value: _,
                styles: _,
            }
            | Expr::Ceil { expr: _, field: _ }
            | Expr::Floor { expr: _, field: _ }
            | Expr::Prefixed { prefix: _, value: _ }
            | Expr::Struct { values: _, fields: _ }
            | Expr::Named { expr: _, name: _ }
            | Expr::Dictionary(_)
            | Expr::Map(_)
            | Expr::MatchAgainst { columns: _, match_value: _, opt_search_modifier: _ }
            | Expr::OuterJoin(_)
            | Expr::Prior(_)
            | Expr::Lambda(_)
            | Expr::MemberOf(_) => foreign("this expression"),
        }
    }

    /// `ARRAY[…]`, inside which brackets alone will do.
    pub(super) fn array(&self, array: &Array) -> Result {
        let Array { elem, named } = array;
        if !*named {
            return foreign("an array without ARRAY");
        }
        self.elements(elem)
    }

    pub(super) fn elements(&self, elements: &[Expr]) -> Result {
        elements.iter().try_for_each(|element| match element {
            Expr::Array(Array { elem, named: false }) => self.elements(elem),
            other => self.expr(other),
        })
    }

    /// `.b`, `[1]`, `[1:2]` behind an expression.
    pub(super) fn access(&self, access: &AccessExpr) -> Result {
        match access {
            AccessExpr::Dot(Expr::Identifier(ident)) => {
                self.names.attribute(&ident.value, offset(ident.span))
            }
            // A name behind a dot and a bracket: a call that only looks like a method.
            AccessExpr::Dot(expr) => match expr {
                Expr::CompoundIdentifier(idents) => {
                    idents.iter().try_for_each(|ident| self.names.attribute(&ident.value, offset(ident.span)))
                }
                _ => foreign("this kind of field"),
            },
            AccessExpr::Subscript(Subscript::Index { index }) => self.expr(index),
            AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, stride }) => {
                if stride.is_some() {
                    return foreign("a stride");
                }
                self.optional(lower_bound.as_ref())?;
                self.optional(upper_bound.as_ref())
            }
        }
    }

    pub(super) fn value(&self, value: &ValueWithSpan) -> Result {
        let ValueWithSpan { value, span: _ } = value;
        match value {
            Value::Number(_, long) => {
                if *long {
                    return foreign("this number");
                }
                Ok(())
            }
            Value::SingleQuotedString(_)
            | Value::HexStringLiteral(_)
            | Value::Boolean(_)
            | Value::Null
            | Value::Placeholder(_) => Ok(()),
            // The lexer hands on none of these.
            Value::DollarQuotedString(_)
            | Value::TripleSingleQuotedString(_)
            | Value::TripleDoubleQuotedString(_)
            | Value::EscapedStringLiteral(_)
            | Value::UnicodeStringLiteral(_)
            | Value::SingleQuotedByteStringLiteral(_)
            | Value::DoubleQuotedByteStringLiteral(_)
            | Value::TripleSingleQuotedByteStringLiteral(_)
            | Value::TripleDoubleQuotedByteStringLiteral(_)
            | Value::SingleQuotedRawStringLiteral(_)
            | Value::DoubleQuotedRawStringLiteral(_)
            | Value::TripleSingleQuotedRawStringLiteral(_)
            | Value::TripleDoubleQuotedRawStringLiteral(_)
            | Value::NationalStringLiteral(_)
            | Value::QuoteDelimitedStringLiteral(_)
            | Value::NationalQuoteDelimitedStringLiteral(_)
            | Value::DoubleQuotedString(_) => foreign("this constant"),
        }
    }
}
