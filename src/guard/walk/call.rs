//! The walk over calls of functions.
//!
//! Invariant: a call is looked up by its name before its arguments are walked, and all of them are.

use sqlparser::ast::{
    DuplicateTreatment, Function, FunctionArg, FunctionArgExpr, FunctionArgOperator, FunctionArgumentClause,
    FunctionArgumentList, FunctionArguments, JsonNullClause, JsonReturningClause, ObjectName, WindowType,
};

use super::{Result, Walk, foreign, named, offset, parts};
use crate::guard::{settings, types};

impl Walk<'_> {
    /// A call of a function by its name.
    pub(super) fn call(&self, name: &ObjectName, brackets: bool) -> Result {
        let Some(idents) = parts(name) else { return foreign("this kind of function name") };
        let names: Vec<&str> = idents.iter().map(|ident| ident.value.as_str()).collect();
        let unquoted = matches!(idents.as_slice(), [only] if only.quote_style.is_none());
        let at = idents.last().and_then(|ident| offset(ident.span));
        self.names.function(&names, unquoted, brackets, at)
    }

    pub(super) fn arguments(&self, args: &[FunctionArg]) -> Result {
        args.iter().try_for_each(|arg| self.argument(arg))
    }

    pub(super) fn argument(&self, arg: &FunctionArg) -> Result {
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
            FunctionArgExpr::QualifiedWildcard(name) => self.reference(name),
            FunctionArgExpr::Wildcard => Ok(()),
            FunctionArgExpr::WildcardWithOptions(options) => self.wildcard(options),
        }
    }

    pub(super) fn argument_operator(&self, operator: &FunctionArgOperator) -> Result {
        match operator {
            FunctionArgOperator::RightArrow
            | FunctionArgOperator::Assignment
            // `KEY: value` and `KEY VALUE value` of JSON_OBJECT
            | FunctionArgOperator::Colon
            | FunctionArgOperator::Value => Ok(()),
            FunctionArgOperator::Equals | FunctionArgOperator::Space => foreign("this kind of argument"),
        }
    }

    pub(super) fn function(&self, function: &Function) -> Result {
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

    pub(in crate::guard) fn argument_list(&self, list: &FunctionArgumentList) -> Result {
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

    /// Is it a call of `set_config`, by whatever path it is named?
    pub(in crate::guard) fn is_set_config(name: &ObjectName) -> bool {
        match parts(name).as_deref() {
            Some([only]) => named(only, "set_config"),
            Some([schema, last]) => named(schema, "pg_catalog") && named(last, "set_config"),
            _ => false,
        }
    }
}
