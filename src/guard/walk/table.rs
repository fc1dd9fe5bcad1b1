//! The walk over what stands in FROM.
//!
//! Invariant: every table's name goes through [`Walk::table`], wherever in a statement it stands.

use sqlparser::ast::{
    Join, JoinConstraint, JoinOperator, ObjectName, TableAlias, TableAliasColumnDef, TableFactor,
    TableFunctionArgs, TableSample, TableSampleKind, TableSampleMethod, TableSampleModifier,
    TableSampleQuantity, TableWithJoins, XmlNamespaceDefinition, XmlPassingArgument, XmlPassingClause,
    XmlTableColumn, XmlTableColumnOption,
};

use super::{Result, Walk, foreign, name, offset, parts};
use crate::guard::types;

impl Walk<'_> {
    /// A table, view or materialized view that the statement reads: all of them pass here, with the
    /// names of its WITH queries, which look the same.
    pub(in crate::guard) fn table(&self, name: &[&str], offset: Option<usize>) -> Result {
        self.names.relation(name, offset)
    }

    /// The name of a table in FROM.
    fn table_name(&self, of: &ObjectName) -> Result {
        let Some(idents) = parts(of) else { return foreign("this kind of name") };
        idents.first().map_or(Ok(()), |first| name(first))?;
        let names: Vec<&str> = idents.iter().map(|ident| ident.value.as_str()).collect();
        self.table(&names, idents.last().and_then(|ident| offset(ident.span)))
    }

    /// The name of an alias or a collation: it runs nothing.
    pub(super) fn reference(&self, of: &ObjectName) -> Result {
        match parts(of) {
            Some(parts) if parts.len() <= 3 => parts.first().map_or(Ok(()), |first| name(first)),
            _ => foreign("this kind of name"),
        }
    }

    pub(super) fn table_with_joins(&self, table: &TableWithJoins) -> Result {
        let TableWithJoins { relation, joins } = table;
        self.table_factor(relation)?;
        for Join { relation, global, join_operator } in joins {
            if *global {
                return foreign("GLOBAL JOIN");
            }
            self.table_factor(relation)?;
            match join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::Left(constraint)
                | JoinOperator::LeftOuter(constraint)
                | JoinOperator::Right(constraint)
                | JoinOperator::RightOuter(constraint)
                | JoinOperator::FullOuter(constraint)
                | JoinOperator::CrossJoin(constraint) => match constraint {
                    JoinConstraint::On(expr) => self.expr(expr)?,
                    JoinConstraint::Using(columns) => {
                        if columns.iter().any(|column| parts(column).is_none_or(|parts| parts.len() != 1)) {
                            return foreign("this USING");
                        }
                    }
                    JoinConstraint::Natural | JoinConstraint::None => {}
                },
                JoinOperator::Semi(_)
                | JoinOperator::LeftSemi(_)
                | JoinOperator::RightSemi(_)
                | JoinOperator::Anti(_)
                | JoinOperator::LeftAnti(_)
                | JoinOperator::RightAnti(_)
                | JoinOperator::CrossApply
                | JoinOperator::OuterApply
                | JoinOperator::AsOf { match_condition: _, constraint: _ }
                | JoinOperator::StraightJoin(_)
                | JoinOperator::ArrayJoin
                | JoinOperator::LeftArrayJoin
                | JoinOperator::InnerArrayJoin => return foreign("this kind of join"),
            }
        }
        Ok(())
    }

    pub(super) fn table_factor(&self, factor: &TableFactor) -> Result {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality: _,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                if !with_hints.is_empty()
                    || version.is_some()
                    || !partitions.is_empty()
                    || json_path.is_some()
                    || !index_hints.is_empty()
                {
                    return foreign("an option of a table");
                }
                self.alias(alias.as_ref())?;
                self.sample(sample.as_ref())?;
                match args {
                    None => {
                        let before = self.names.met.rows();
                        self.table_name(name)?;
                        if let Some(alias) = alias.as_ref().filter(|_| self.names.met.rows() > before) {
                            self.names.met.alias(&alias.name.value);
                        }
                        Ok(())
                    }
                    Some(TableFunctionArgs { args, settings }) => {
                        if settings.is_some() {
                            return foreign("SETTINGS");
                        }
                        self.call(name, true)?;
                        self.arguments(args)
                    }
                }
            }
            TableFactor::Derived { lateral: _, subquery, alias, sample } => {
                self.alias(alias.as_ref())?;
                self.sample(sample.as_ref())?;
                self.query(subquery)
            }
            TableFactor::Function { lateral: _, name, args, with_ordinality: _, alias } => {
                self.alias(alias.as_ref())?;
                self.call(name, true)?;
                self.arguments(args)
            }
            TableFactor::UNNEST {
                alias,
                array_exprs,
                with_offset,
                with_offset_alias,
                with_ordinality: _,
            } => {
                if *with_offset || with_offset_alias.is_some() {
                    return foreign("WITH OFFSET");
                }
                self.alias(alias.as_ref())?;
                self.names.function(&["unnest"], true, true, None)?;
                self.exprs(array_exprs)
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                self.alias(alias.as_ref())?;
                self.table_with_joins(table_with_joins)
            }
            TableFactor::XmlTable { namespaces, row_expression, passing, columns, alias } => {
                self.alias(alias.as_ref())?;
                for XmlNamespaceDefinition { uri, name: _ } in namespaces {
                    self.expr(uri)?;
                }
                self.expr(row_expression)?;
                let XmlPassingClause { arguments } = passing;
                for XmlPassingArgument { expr, alias: _, by_value: _ } in arguments {
                    self.expr(expr)?;
                }
                for XmlTableColumn { name: _, option } in columns {
                    match option {
                        XmlTableColumnOption::NamedInfo { r#type, path, default, nullable: _ } => {
                            types::data_type(&self.names, r#type)?;
                            self.optional(path.as_ref())?;
                            self.optional(default.as_ref())?;
                        }
                        XmlTableColumnOption::ForOrdinality => {}
                    }
                }
                Ok(())
            }
            TableFactor::TableFunction { expr: _, alias: _ }
            | TableFactor::JsonTable { json_expr: _, json_path: _, columns: _, alias: _ }
            | TableFactor::OpenJsonTable { json_expr: _, json_path: _, columns: _, alias: _ }
            | TableFactor::Pivot {
                table: _,
                aggregate_functions: _,
                value_column: _,
                value_source: _,
                default_on_null: _,
                alias: _,
            }
            | TableFactor::Unpivot { table: _, value: _, name: _, columns: _, null_inclusion: _, alias: _ }
            | TableFactor::UnpivotExpr { expression: _, value_alias: _, attribute_alias: _ }
            | TableFactor::MatchRecognize {
                table: _,
                partition_by: _,
                order_by: _,
                measures: _,
                rows_per_match: _,
                after_match_skip: _,
                pattern: _,
                symbols: _,
                alias: _,
            }
            | TableFactor::SemanticView {
                name: _,
                dimensions: _,
                metrics: _,
                facts: _,
                where_clause: _,
                alias: _,
            } => foreign("this kind of table"),
        }
    }

    pub(super) fn alias(&self, alias: Option<&TableAlias>) -> Result {
        let Some(TableAlias { explicit: _, name: alias, columns, at }) = alias else { return Ok(()) };
        name(alias)?;
        if at.is_some() {
            return foreign("AT");
        }
        for TableAliasColumnDef { name: _, data_type } in columns {
            if let Some(data_type) = data_type {
                types::data_type(&self.names, data_type)?;
            }
        }
        Ok(())
    }

    pub(super) fn sample(&self, sample: Option<&TableSampleKind>) -> Result {
        let (Some(TableSampleKind::BeforeTableAlias(sample))
        | Some(TableSampleKind::AfterTableAlias(sample))) = sample
        else {
            return Ok(());
        };
        let TableSample { modifier, name, quantity, seed: _, bucket, offset } = &**sample;
        match modifier {
            TableSampleModifier::TableSample => {}
            TableSampleModifier::Sample => return foreign("SAMPLE"),
        }
        match name {
            Some(TableSampleMethod::Bernoulli | TableSampleMethod::System) => {}
            None | Some(TableSampleMethod::Row | TableSampleMethod::Block) => {
                return foreign("this kind of TABLESAMPLE");
            }
        }
        if bucket.is_some() || offset.is_some() {
            return foreign("this kind of TABLESAMPLE");
        }
        match quantity {
            None => Ok(()),
            Some(TableSampleQuantity { parenthesized: _, value, unit }) => {
                if unit.is_some() {
                    return foreign("this kind of TABLESAMPLE");
                }
                self.expr(value)
            }
        }
    }
}
