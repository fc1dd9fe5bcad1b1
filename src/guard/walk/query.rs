//! The walk over queries: WITH, set operations, SELECT, ORDER BY and windows.
//!
//! Invariant: every clause of a query is looked at, or refused where it is there.

use sqlparser::ast::{
    ConnectByKind, Cte, Distinct, Fetch, GroupByExpr, LimitClause, NamedWindowDefinition, NamedWindowExpr,
    Offset, OrderBy, OrderByExpr, OrderByKind, OrderByOptions, OrderBySort, Parens, Query, Select,
    SelectFlavor, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, SetOperator, SetQuantifier, Values,
    WildcardAdditionalOptions, WindowFrame, WindowFrameBound, WindowSpec, With,
};

use super::{Result, Walk, foreign};
use crate::guard::{Refusal, settings};

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

    pub(super) fn with(&self, with: &With) -> Result {
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

    pub(super) fn set_expr(&self, body: &SetExpr) -> Result {
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

    pub(super) fn select(&self, select: &Select) -> Result {
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

    pub(super) fn select_item(&self, item: &SelectItem) -> Result {
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
                    SelectItemQualifiedWildcardKind::ObjectName(name) => self.reference(name),
                    SelectItemQualifiedWildcardKind::Expr(expr) => self.expr(expr),
                }
            }
            SelectItem::Wildcard(options) => self.wildcard(options),
        }
    }

    pub(super) fn wildcard(&self, options: &WildcardAdditionalOptions) -> Result {
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

    pub(super) fn order_by(&self, order_by: &OrderBy) -> Result {
        let OrderBy { kind, interpolate } = order_by;
        if interpolate.is_some() {
            return foreign("INTERPOLATE");
        }
        match kind {
            OrderByKind::All(_) => foreign("ORDER BY ALL"),
            OrderByKind::Expressions(exprs) => self.order_by_exprs(exprs),
        }
    }

    pub(super) fn order_by_exprs(&self, exprs: &[OrderByExpr]) -> Result {
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

    pub(super) fn window_spec(&self, spec: &WindowSpec) -> Result {
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
}
