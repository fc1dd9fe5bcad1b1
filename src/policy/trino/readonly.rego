# The write guard: what must not be done to a source, whoever asks and whatever else allows it.
#
# Invariant: `deny` is true or false. Policies of other people AND `data.fedgate.readonly.deny == false` into
# their own; comparing with false refuses as well while the bundle is not there. Operations that change nothing are
# listed, so that one which a later Trino brings is refused until somebody has looked at it.
package fedgate.readonly

import data.fedgate.masks
import data.fedgate.subject

default deny := false

# Without data nobody knows what is read-only.
deny if not data.fedgate.policy.catalogs

deny if {
	not input.action.operation in harmless
	not raw_query
	some catalog in named
	guarded(catalog)
	not listed(catalog)
}

# `CALL catalog.system.execute(…)` runs any SQL: nobody, not even who may write.
deny if {
	input.action.operation in {"ExecuteProcedure", "ExecuteTableProcedure"}
	subject.folded(input.action.resource.function.functionName) == "execute"
	some catalog in named
	data.fedgate.policy.known[catalog]
}

# `TABLE(catalog.system.query(…))` reads by any SQL and passes by masks and row filters.
deny if {
	raw_query
	some catalog in named
	data.fedgate.policy.known[catalog]
	not masks.unveiled(catalog)
}

harmless := {
	"AccessCatalog",
	"ExecuteQuery",
	"FilterCatalogs",
	"FilterColumns",
	"FilterFunctions",
	"FilterSchemas",
	"FilterTables",
	"FilterViewQueryOwnedBy",
	"GetColumnMask",
	"GetRowFilters",
	"ImpersonateUser",
	"KillQueryOwnedBy",
	"ReadSystemInformation",
	"SelectFromColumns",
	"SetCatalogSessionProperty",
	"SetSystemSessionProperty",
	"ShowColumns",
	"ShowCreateFunction",
	"ShowCreateSchema",
	"ShowCreateTable",
	"ShowFunctions",
	"ShowSchemas",
	"ShowTables",
	"ViewQueryOwnedBy",
	"WriteSystemInformation",
}

raw_query if {
	input.action.operation in {"ExecuteFunction", "CreateViewWithExecuteFunction"}
	subject.folded(input.action.resource.function.functionName) == "query"
	subject.folded(subject.place(input.action.resource.function).schemaName) == "system"
}

# Catalogs stand at different depths: in a table, a schema, a column, a function, the target of a rename, a list.
named contains subject.folded(value) if {
	walk(input.action, [path, value])
	is_string(value)
	path[count(path) - 1] == "catalogName"
}

named contains subject.folded(value) if {
	walk(input.action, [path, value])
	is_string(value)
	array.slice(path, count(path) - 2, count(path)) == ["catalog", "name"]
}

# Open is a source only when both its own entry and the marker that people read say so.
guarded(catalog) if {
	data.fedgate.policy.catalogs[catalog]
	not opened(catalog)
}

opened(catalog) if {
	data.fedgate.policy.catalogs[catalog].read_only == false
	every source in data.fedgate.policy.catalogs[catalog].sources {
		data.akko[source].read_only == false
	}
}

listed(catalog) if data.fedgate.policy.catalogs[catalog].write_allow_list[subject.user]
