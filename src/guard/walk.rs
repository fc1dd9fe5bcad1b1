//! The walk over a query's tree: every variant of sqlparser's types is named, and every field looked at.
//!
//! Invariant: what is not a plain PostgreSQL read is refused; there is no `_ =>` over a foreign enum
//! and no `..` over a foreign struct that could hold an expression, so that an upgrade of the parser
//! breaks the build instead of the promise.

use std::cell::Cell;

use sqlparser::ast::{
    AccessExpr, Array, BinaryOperator, CaseWhen, CastKind, ConnectByKind, Cte, Distinct, DuplicateTreatment,
    Expr, ExtractSyntax, Fetch, Function, FunctionArg, FunctionArgExpr, FunctionArgOperator,
    FunctionArgumentClause, FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, Interval, Join,
    JoinConstraint, JoinOperator, JsonNullClause, JsonReturningClause, LimitClause, NamedWindowDefinition,
    NamedWindowExpr, ObjectName, ObjectNamePart, Offset, OrderBy, OrderByExpr, OrderByKind, OrderByOptions,
    OrderBySort, Parens, Query, Select, SelectFlavor, SelectItem, SelectItemQualifiedWildcardKind, SetExpr,
    SetOperator, SetQuantifier, Subscript, TableAlias, TableAliasColumnDef, TableFactor, TableFunctionArgs,
    TableSample, TableSampleKind, TableSampleMethod, TableSampleModifier, TableSampleQuantity,
    TableWithJoins, TypedString, UnaryOperator, Value, ValueWithSpan, Values, WildcardAdditionalOptions,
    WindowFrame, WindowFrameBound, WindowSpec, WindowType, With, XmlNamespaceDefinition, XmlPassingArgument,
    XmlPassingClause, XmlTableColumn, XmlTableColumnOption,
};
use sqlparser::tokenizer::Span;

use super::found::FoundKind;
use super::names::Names;
use super::{settings, types};
use crate::guard::Refusal;
use crate::sql::keyword::{self, Category};

type Result = std::result::Result<(), Refusal>;

pub(super) struct Walk<'c> {
    pub names: Names<'c>,
    /// Calls of `set_config` that were judged.
    pub set_config: Cell<usize>,
    /// A WITH stands somewhere in the statement: a name may be another table's than it seems.
    pub with: Cell<bool>,
}

/// Byte offset of a tree's node: the parser was handed it as a column.
pub(super) fn offset(span: Span) -> Option<usize> {
    usize::try_from(span.start.column).ok().and_then(|column| column.checked_sub(1))
}

fn foreign(what: &str) -> Result {
    Err(Refusal::unverified(&format!("{what} is not supported")))
}

/// The parts of a name, if it is made of identifiers only.
pub(super) fn parts(name: &ObjectName) -> Option<Vec<&Ident>> {
    let ObjectName(parts) = name;
    parts
        .iter()
        .map(|part| match part {
            ObjectNamePart::Identifier(ident) => Some(ident),
            ObjectNamePart::Function(_) => None,
        })
        .collect()
}

/// Words that are reserved and yet stand as an operand.
const RESERVED_VALUES: &[&str] = &[
    "current_catalog",
    "current_date",
    "current_role",
    "current_time",
    "current_timestamp",
    "current_user",
    "localtime",
    "localtimestamp",
    "session_user",
    "system_user",
    "user",
];

/// Refuses reserved words where a name is due: sqlparser takes them, and what it then makes of the rest
/// is not what PostgreSQL would.
fn name(ident: &Ident) -> Result {
    if ident.quote_style == Some('\'') {
        return foreign("a string as a name");
    }
    if ident.quote_style.is_none()
        && !RESERVED_VALUES.contains(&ident.value.as_str())
        && keyword::lookup(&ident.value).0 == Category::Reserved
    {
        let message = format!("unexpected \"{}\"", ident.value);
        return Err(Refusal::unverified(&message).at(offset(ident.span)));
    }
    Ok(())
}

/// Is it the unquoted word or quoted name `name`?
fn named(ident: &Ident, name: &str) -> bool {
    ident.value == name
}

impl Walk<'_> {
    pub fn query(&self, query: &Query) -> Result {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        if !locks.is_empty() {
            return Err(Refusal::write("SELECT FOR UPDATE"));
        }
        if for_clause.is_some() || settings.is_some() || format_clause.is_some() || !pipe_operators.is_empty()
        {
            return foreign("a clause of another database");
        }
        if let Some(with) = with {
            self.with(with)?;
        }
        self.set_expr(body)?;
        if let Some(order_by) = order_by {
            self.order_by(order_by)?;
        }
        match limit_clause {
            None => {}
            Some(LimitClause::LimitOffset { limit, offset, limit_by }) => {
                self.optional(limit.as_ref())?;
                if let Some(Offset { value, rows: _ }) = offset {
                    self.expr(value)?;
                }
                if !limit_by.is_empty() {
                    return foreign("LIMIT BY");
                }
            }
            Some(LimitClause::OffsetCommaLimit { offset: _, limit: _ }) => return foreign("LIMIT #,#"),
        }
        if let Some(Fetch { with_ties: _, percent, quantity }) = fetch {
            if *percent {
                return foreign("FETCH PERCENT");
            }
            self.optional(quantity.as_ref())?;
        }
        Ok(())
    }

    fn with(&self, with: &With) -> Result {
        let With { with_token: _, recursive: _, cte_tables } = with;
        for Cte { alias, query, from, materialized: _, closing_paren_token: _ } in cte_tables {
            if from.is_some() {
                return foreign("WITH … FROM");
            }
            self.alias(Some(alias))?;
            if let SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) =
                &*query.body
            {
                // PostgreSQL names the statement around it.
                return Err(Refusal::write("SELECT"));
            }
            self.query(query)?;
        }
        Ok(())
    }

    fn set_expr(&self, body: &SetExpr) -> Result {
        let mut body = body;
        while let SetExpr::SetOperation { left, op, set_quantifier, right } = body {
            match op {
                SetOperator::Union | SetOperator::Except | SetOperator::Intersect => {}
                SetOperator::Minus => return foreign("MINUS"),
            }
            match set_quantifier {
                SetQuantifier::All | SetQuantifier::Distinct | SetQuantifier::None => {}
                SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName => {
                    return foreign("BY NAME");
                }
            }
            self.set_expr(right)?;
            body = left;
        }
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            // The loop has left none.
            SetExpr::SetOperation { left: _, op: _, set_quantifier: _, right: _ } => foreign("this query"),
            SetExpr::Values(Values { explicit_row, value_keyword, rows }) => {
                if *explicit_row || *value_keyword {
                    return foreign("VALUES ROW");
                }
                for Parens { opening_token: _, content, closing_token: _ } in rows {
                    self.exprs(content)?;
                }
                Ok(())
            }
            SetExpr::Insert(_) => Err(Refusal::write("INSERT")),
            SetExpr::Update(_) => Err(Refusal::write("UPDATE")),
            SetExpr::Delete(_) => Err(Refusal::write("DELETE")),
            SetExpr::Merge(_) => Err(Refusal::write("MERGE")),
            // The text of the name is lost; normalising leaves no such node.
            SetExpr::Table(_) => foreign("TABLE"),
        }
    }

    fn select(&self, select: &Select) -> Result {
        let Select {
            select_token: _,
            optimizer_hints,
            distinct,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having,
            named_window,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        if into.is_some() {
            return Err(Refusal::write("SELECT INTO"));
        }
        match flavor {
            SelectFlavor::Standard => {}
            SelectFlavor::FromFirst | SelectFlavor::FromFirstNoSelect => return foreign("FROM … SELECT"),
        }
        let connect: &[ConnectByKind] = connect_by;
        if !optimizer_hints.is_empty()
            || select_modifiers.is_some()
            || top.is_some()
            || exclude.is_some()
            || !lateral_views.is_empty()
            || prewhere.is_some()
            || !connect.is_empty()
            || !cluster_by.is_empty()
            || !distribute_by.is_empty()
            || !sort_by.is_empty()
            || qualify.is_some()
            || value_table_mode.is_some()
        {
            return foreign("a clause of another database");
        }
        match distinct {
            None | Some(Distinct::All | Distinct::Distinct) => {}
            Some(Distinct::On(exprs)) => self.exprs(exprs)?,
        }
        if self.names.notes.is_some() || !settings::is_dump_shape(select, self)? {
            for item in projection {
                self.select_item(item)?;
            }
        }
        for table in from {
            self.table_with_joins(table)?;
        }
        self.optional(selection.as_ref())?;
        match group_by {
            GroupByExpr::All(modifiers) => {
                if !modifiers.is_empty() {
                    return foreign("GROUP BY ALL");
                }
            }
            GroupByExpr::Expressions(exprs, modifiers) => {
                if !modifiers.is_empty() {
                    return foreign("GROUP BY … WITH");
                }
                self.exprs(exprs)?;
            }
        }
        self.optional(having.as_ref())?;
        for NamedWindowDefinition(_, window) in named_window {
            match window {
                NamedWindowExpr::NamedWindow(_) => {}
                NamedWindowExpr::WindowSpec(spec) => self.window_spec(spec)?,
            }
        }
        Ok(())
    }

    fn select_item(&self, item: &SelectItem) -> Result {
        match item {
            SelectItem::UnnamedExpr(expr) => self.expr(expr),
            SelectItem::ExprWithAlias { expr, alias } => {
                // Where sqlparser sees a string for an alias, PostgreSQL sees a type before a constant.
                if alias.quote_style == Some('\'') {
                    return foreign("a string as an alias");
                }
                self.expr(expr)
            }
            SelectItem::ExprWithAliases { expr: _, aliases: _ } => foreign("several aliases"),
            SelectItem::QualifiedWildcard(kind, options) => {
                self.wildcard(options)?;
                match kind {
                    SelectItemQualifiedWildcardKind::ObjectName(name) => self.relation(name),
                    SelectItemQualifiedWildcardKind::Expr(expr) => self.expr(expr),
                }
            }
            SelectItem::Wildcard(options) => self.wildcard(options),
        }
    }

    fn wildcard(&self, options: &WildcardAdditionalOptions) -> Result {
        let WildcardAdditionalOptions {
            wildcard_token: _,
            opt_ilike,
            opt_exclude,
            opt_except,
            opt_replace,
            opt_rename,
            opt_alias,
        } = options;
        if opt_ilike.is_some()
            || opt_exclude.is_some()
            || opt_except.is_some()
            || opt_replace.is_some()
            || opt_rename.is_some()
            || opt_alias.is_some()
        {
            return foreign("an option of *");
        }
        Ok(())
    }

    /// The name of what is read in FROM.
    fn table(&self, of: &ObjectName) -> Result {
        if self.names.notes.is_some()
            && let Some(idents) = parts(of)
        {
            let names: Vec<&str> = idents.iter().map(|ident| ident.value.as_str()).collect();
            let at = idents.last().and_then(|ident| offset(ident.span));
            self.names.noted(FoundKind::Relation, &names, at);
        }
        self.relation(of)
    }

    /// The name of a table, view or alias: reading it runs nothing that the text names.
    fn relation(&self, of: &ObjectName) -> Result {
        match parts(of) {
            Some(parts) if parts.len() <= 3 => parts.first().map_or(Ok(()), |first| name(first)),
            _ => foreign("this kind of name"),
        }
    }

    fn table_with_joins(&self, table: &TableWithJoins) -> Result {
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

    fn table_factor(&self, factor: &TableFactor) -> Result {
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
                    None => self.table(name),
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

    fn alias(&self, alias: Option<&TableAlias>) -> Result {
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

    fn sample(&self, sample: Option<&TableSampleKind>) -> Result {
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

    fn order_by(&self, order_by: &OrderBy) -> Result {
        let OrderBy { kind, interpolate } = order_by;
        if interpolate.is_some() {
            return foreign("INTERPOLATE");
        }
        match kind {
            OrderByKind::All(_) => foreign("ORDER BY ALL"),
            OrderByKind::Expressions(exprs) => self.order_by_exprs(exprs),
        }
    }

    fn order_by_exprs(&self, exprs: &[OrderByExpr]) -> Result {
        for OrderByExpr { expr, options, with_fill } in exprs {
            if with_fill.is_some() {
                return foreign("WITH FILL");
            }
            let OrderByOptions { sort, nulls_first: _ } = options;
            match sort {
                // The operator of USING was judged with the tokens.
                None | Some(OrderBySort::Asc | OrderBySort::Desc | OrderBySort::Using(_)) => {}
            }
            self.expr(expr)?;
        }
        Ok(())
    }

    fn window_spec(&self, spec: &WindowSpec) -> Result {
        let WindowSpec { window_name: _, partition_by, order_by, window_frame } = spec;
        self.exprs(partition_by)?;
        self.order_by_exprs(order_by)?;
        if let Some(WindowFrame { units: _, start_bound, end_bound }) = window_frame {
            for bound in [Some(start_bound), end_bound.as_ref()].into_iter().flatten() {
                match bound {
                    WindowFrameBound::CurrentRow => {}
                    WindowFrameBound::Preceding(expr) | WindowFrameBound::Following(expr) => {
                        self.optional(expr.as_deref())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn optional(&self, expr: Option<&Expr>) -> Result {
        expr.map_or(Ok(()), |expr| self.expr(expr))
    }

    fn exprs(&self, exprs: &[Expr]) -> Result {
        exprs.iter().try_for_each(|expr| self.expr(expr))
    }

    fn lists(&self, lists: &[Vec<Expr>]) -> Result {
        lists.iter().try_for_each(|list| self.exprs(list))
    }

    /// A call of a function by its name.
    fn call(&self, name: &ObjectName, brackets: bool) -> Result {
        let Some(idents) = parts(name) else { return foreign("this kind of function name") };
        let names: Vec<&str> = idents.iter().map(|ident| ident.value.as_str()).collect();
        let unquoted = matches!(idents.as_slice(), [only] if only.quote_style.is_none());
        let at = idents.last().and_then(|ident| offset(ident.span));
        self.names.function(&names, unquoted, brackets, at)
    }

    fn arguments(&self, args: &[FunctionArg]) -> Result {
        args.iter().try_for_each(|arg| self.argument(arg))
    }

    fn argument(&self, arg: &FunctionArg) -> Result {
        let arg = match arg {
            FunctionArg::Named { name: _, arg, operator } => {
                self.argument_operator(operator)?;
                arg
            }
            FunctionArg::ExprNamed { name, arg, operator } => {
                self.argument_operator(operator)?;
                self.expr(name)?;
                arg
            }
            FunctionArg::Unnamed(arg) => arg,
        };
        match arg {
            FunctionArgExpr::Expr(expr) => self.expr(expr),
            FunctionArgExpr::QualifiedWildcard(name) => self.relation(name),
            FunctionArgExpr::Wildcard => Ok(()),
            FunctionArgExpr::WildcardWithOptions(options) => self.wildcard(options),
        }
    }

    fn argument_operator(&self, operator: &FunctionArgOperator) -> Result {
        match operator {
            FunctionArgOperator::RightArrow
            | FunctionArgOperator::Assignment
            // `KEY: value` and `KEY VALUE value` of JSON_OBJECT
            | FunctionArgOperator::Colon
            | FunctionArgOperator::Value => Ok(()),
            FunctionArgOperator::Equals | FunctionArgOperator::Space => foreign("this kind of argument"),
        }
    }

    fn function(&self, function: &Function) -> Result {
        let Function { name, uses_odbc_syntax, parameters, args, within_group, filter, null_treatment, over } =
            function;
        if *uses_odbc_syntax {
            return foreign("ODBC syntax");
        }
        match parameters {
            FunctionArguments::None => {}
            FunctionArguments::Subquery(_) | FunctionArguments::List(_) => return foreign("parameters"),
        }
        let brackets = match args {
            FunctionArguments::None => false,
            FunctionArguments::Subquery(_) | FunctionArguments::List(_) => true,
        };
        if self.names.notes.is_none() && settings::judge_call(function, self)? {
            return Ok(());
        }
        self.call(name, brackets)?;
        match args {
            FunctionArguments::None => {}
            FunctionArguments::Subquery(query) => self.query(query)?,
            FunctionArguments::List(list) => self.argument_list(list)?,
        }
        self.order_by_exprs(within_group)?;
        self.optional(filter.as_deref())?;
        if null_treatment.is_some() {
            return foreign("IGNORE NULLS");
        }
        match over {
            None | Some(WindowType::NamedWindow(_)) => Ok(()),
            Some(WindowType::WindowSpec(spec)) => self.window_spec(spec),
        }
    }

    pub(super) fn argument_list(&self, list: &FunctionArgumentList) -> Result {
        let FunctionArgumentList { duplicate_treatment, args, clauses } = list;
        match duplicate_treatment {
            None | Some(DuplicateTreatment::Distinct | DuplicateTreatment::All) => {}
        }
        self.arguments(args)?;
        for clause in clauses {
            match clause {
                FunctionArgumentClause::OrderBy(exprs) => self.order_by_exprs(exprs)?,
                FunctionArgumentClause::JsonNullClause(
                    JsonNullClause::NullOnNull | JsonNullClause::AbsentOnNull,
                ) => {}
                FunctionArgumentClause::JsonReturningClause(JsonReturningClause { data_type }) => {
                    types::data_type(&self.names, data_type)?;
                }
                FunctionArgumentClause::IgnoreOrRespectNulls(_)
                | FunctionArgumentClause::Where(_)
                | FunctionArgumentClause::Limit(_)
                | FunctionArgumentClause::OnOverflow(_)
                | FunctionArgumentClause::Having(_)
                | FunctionArgumentClause::Separator(_) => return foreign("a clause among the arguments"),
            }
        }
        Ok(())
    }

    /// Chains of operators lean to the left, so the left operand is walked in a loop.
    pub(super) fn expr(&self, expr: &Expr) -> Result {
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

    fn unary_operator(&self, op: &UnaryOperator) -> Result {
        match op {
            UnaryOperator::Plus | UnaryOperator::Minus | UnaryOperator::Not | UnaryOperator::BitwiseNot => {
                Ok(())
            }
            // The tokens of these are handed on as another operator.
            UnaryOperator::AtDashAt
            | UnaryOperator::BangNot
            | UnaryOperator::DoubleAt
            | UnaryOperator::Hash
            | UnaryOperator::PGAbs
            | UnaryOperator::PGCubeRoot
            | UnaryOperator::PGPostfixFactorial
            | UnaryOperator::PGPrefixFactorial
            | UnaryOperator::PGSquareRoot
            | UnaryOperator::QuestionDash
            | UnaryOperator::QuestionPipe => foreign("this operator"),
        }
    }

    /// What `expr` does not walk itself.
    fn operand(&self, expr: &Expr) -> Result {
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
                self.relation(collation)?;
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
            Expr::QualifiedWildcard(name, _) => self.relation(name),
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
    fn array(&self, array: &Array) -> Result {
        let Array { elem, named } = array;
        if !*named {
            return foreign("an array without ARRAY");
        }
        self.elements(elem)
    }

    fn elements(&self, elements: &[Expr]) -> Result {
        elements.iter().try_for_each(|element| match element {
            Expr::Array(Array { elem, named: false }) => self.elements(elem),
            other => self.expr(other),
        })
    }

    /// `.b`, `[1]`, `[1:2]` behind an expression.
    fn access(&self, access: &AccessExpr) -> Result {
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

    fn value(&self, value: &ValueWithSpan) -> Result {
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

    /// Which operator it is was judged with the tokens; here only that it is one of PostgreSQL's.
    fn binary_operator(&self, op: &BinaryOperator) -> Result {
        match op {
            BinaryOperator::Plus
            | BinaryOperator::Minus
            | BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::StringConcat
            | BinaryOperator::Gt
            | BinaryOperator::Lt
            | BinaryOperator::GtEq
            | BinaryOperator::LtEq
            | BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::And
            | BinaryOperator::Or
            | BinaryOperator::Custom(_)
            | BinaryOperator::PGExp
            | BinaryOperator::PGCustomBinaryOperator(_)
            | BinaryOperator::Overlaps
            // `^` in a dialect that takes it for this
            | BinaryOperator::BitwiseXor => Ok(()),
            BinaryOperator::Spaceship
            | BinaryOperator::Xor
            | BinaryOperator::BitwiseOr
            | BinaryOperator::BitwiseAnd
            | BinaryOperator::DuckIntegerDivide
            | BinaryOperator::MyIntegerDivide
            | BinaryOperator::Match
            | BinaryOperator::Regexp
            | BinaryOperator::Glob
            | BinaryOperator::PGBitwiseXor
            | BinaryOperator::PGBitwiseShiftLeft
            | BinaryOperator::PGBitwiseShiftRight
            | BinaryOperator::PGOverlap
            | BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::PGLikeMatch
            | BinaryOperator::PGILikeMatch
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch
            | BinaryOperator::PGStartsWith
            | BinaryOperator::Arrow
            | BinaryOperator::LongArrow
            | BinaryOperator::HashArrow
            | BinaryOperator::HashLongArrow
            | BinaryOperator::AtAt
            | BinaryOperator::AtArrow
            | BinaryOperator::ArrowAt
            | BinaryOperator::HashMinus
            | BinaryOperator::AtQuestion
            | BinaryOperator::Question
            | BinaryOperator::QuestionAnd
            | BinaryOperator::QuestionPipe
            | BinaryOperator::DoubleHash
            | BinaryOperator::LtDashGt
            | BinaryOperator::AndLt
            | BinaryOperator::AndGt
            | BinaryOperator::LtLtPipe
            | BinaryOperator::PipeGtGt
            | BinaryOperator::AndLtPipe
            | BinaryOperator::PipeAndGt
            | BinaryOperator::LtCaret
            | BinaryOperator::GtCaret
            | BinaryOperator::QuestionHash
            | BinaryOperator::QuestionDash
            | BinaryOperator::QuestionDashPipe
            | BinaryOperator::QuestionDoublePipe
            | BinaryOperator::At
            | BinaryOperator::TildeEq
            | BinaryOperator::Assignment => foreign("this operator"),
        }
    }

    /// Is it a call of `set_config`, by whatever path it is named?
    pub(super) fn is_set_config(name: &ObjectName) -> bool {
        match parts(name).as_deref() {
            Some([only]) => named(only, "set_config"),
            Some([schema, last]) => named(schema, "pg_catalog") && named(last, "set_config"),
            _ => false,
        }
    }
}
