# The answers to Trino's questions, for a policy of one's own or for the thin one in `trino.rego`.
#
# Invariant: what is not allowed here by name is denied.
package fedgate.trino

import data.fedgate.masks
import data.fedgate.readonly
import data.fedgate.subject

default allow := false

allow if {
	readonly.deny == false
	permitted(input.action.operation, object.get(input.action, "resource", {}))
}

# Whoever may write is on the list of every source that the operation names, and opens each of its tables.
allow if {
	readonly.deny == false
	input.action.operation in writes
	count(tables) > 0
	every catalog in readonly.named {
		readonly.listed(catalog)
	}
	every table in tables {
		readable(table)
	}
}

batch contains index if {
	readonly.deny == false
	count(input.action.filterResources) > 0
	input.action.operation != "FilterColumns"
	some index, resource in input.action.filterResources
	permitted(input.action.operation, resource)
}

# Columns come as one table with a list, and the answer counts within that list.
batch contains index if {
	readonly.deny == false
	input.action.operation == "FilterColumns"
	count(input.action.filterResources) == 1
	table := input.action.filterResources[0].table
	readable(table)
	some index, _ in table.columns
}

rowFilters contains {"expression": expression} if {
	some expression in masks.filters(object.get(input.action.resource, "table", {}))
}

columnMask := {"expression": masks.expression(object.get(input.action.resource, "column", {}))}

# The batched question nests each column under `column`. One that does not is read as the column itself: reading
# the wrong place would mask nothing.
batchColumnMasks contains {"index": index, "viewExpression": {"expression": expression}} if {
	some index, resource in input.action.filterResources
	expression := masks.expression(object.get(resource, "column", resource))
}

permitted("ExecuteQuery", _)

permitted(operation, resource) if {
	operation in {"AccessCatalog", "FilterCatalogs", "ShowSchemas"}
	visible(resource.catalog.name)
}

permitted(operation, resource) if {
	operation in {"FilterSchemas", "ShowCreateSchema", "ShowFunctions", "ShowTables"}
	visible_schema(resource.schema)
}

permitted(operation, resource) if {
	operation in {"FilterColumns", "FilterTables", "SelectFromColumns", "ShowColumns", "ShowCreateTable"}
	readable(resource.table)
}

permitted(operation, resource) if {
	operation in {"FilterFunctions", "ShowCreateFunction"}
	visible_schema(subject.place(resource.function))
}

# Functions of Trino itself, and what other catalogs bring where they are open.
permitted(operation, resource) if {
	operation in {"ExecuteFunction", "CreateViewWithExecuteFunction"}
	own_function(resource.function)
}

# Raw SQL passes by scopes too: only for who reads all of the catalog.
permitted(operation, resource) if {
	operation in {"ExecuteFunction", "CreateViewWithExecuteFunction"}
	readonly.raw_query
	catalog := subject.folded(subject.place(resource.function).catalogName)
	data.fedgate.policy.catalogs[catalog]
	some who in subject.matched
	subject.opens_all(who, catalog)
}

# One's own queries, and everybody's for admins.
permitted(operation, resource) if {
	operation in {"FilterViewQueryOwnedBy", "KillQueryOwnedBy", "ViewQueryOwnedBy"}
	resource.user.user == subject.user
}

permitted(operation, _) if {
	operation in {"FilterViewQueryOwnedBy", "KillQueryOwnedBy", "ReadSystemInformation", "ViewQueryOwnedBy"}
	subject.admin
}

permitted("ImpersonateUser", resource) if resource.user.user == subject.user

permitted("SetSystemSessionProperty", resource) if {
	data.fedgate.policy.settings.system_session_properties[resource.systemSessionProperty.name]
}

# Catalogs that the document says nothing of: as the operator says, and that is nothing unless said.
permitted(_, _) if {
	data.fedgate.policy.settings.other_catalogs == "allow"
	count(readonly.named) > 0
	every catalog in readonly.named {
		other(catalog)
	}
}

other(catalog) if {
	catalog != "system"
	not data.fedgate.policy.known[catalog]
}

visible(name) if {
	data.fedgate.policy.catalogs[subject.folded(name)]
	some who in subject.matched
	subject.opens_catalog(who, subject.folded(name))
}

# Trino's own catalog: what drivers ask for.
visible("system")

visible(name) if {
	data.fedgate.policy.settings.other_catalogs == "read"
	other(subject.folded(name))
}

visible_schema(schema) if {
	data.fedgate.policy.catalogs[subject.folded(schema.catalogName)]
	count(subject.patterns(subject.folded(schema.catalogName), subject.folded(schema.schemaName))) > 0
}

visible_schema(schema) if {
	visible(schema.catalogName)
	subject.folded(schema.schemaName) == "information_schema"
}

visible_schema(schema) if {
	schema.catalogName == "system"
	schema.schemaName in {"builtin", "jdbc", "metadata"}
}

visible_schema(schema) if {
	data.fedgate.policy.settings.other_catalogs == "read"
	other(subject.folded(schema.catalogName))
}

readable(table) if {
	data.fedgate.policy.catalogs[subject.folded(table.catalogName)]
	subject.opened(
		subject.folded(table.catalogName),
		subject.folded(table.schemaName),
		subject.folded(table.tableName),
	)
}

# What these list is filtered by the questions above.
readable(table) if {
	visible(table.catalogName)
	subject.folded(table.schemaName) == "information_schema"
}

readable(table) if {
	table.catalogName == "system"
	table.schemaName in {"jdbc", "metadata"}
}

readable(table) if {
	data.fedgate.policy.settings.other_catalogs == "read"
	other(subject.folded(table.catalogName))
}

own_function(function) if {
	is_string(function.functionName)
	not subject.place(function).catalogName
}

own_function(function) if {
	subject.place(function).catalogName == "system"
	subject.place(function).schemaName == "builtin"
}

tables contains table if {
	some place in ["resource", "targetResource"]
	table := input.action[place].table
}

writes := {
	"AddColumn",
	"AlterColumn",
	"CreateTable",
	"DeleteFromTable",
	"DropColumn",
	"DropTable",
	"InsertIntoTable",
	"RenameColumn",
	"RenameTable",
	"SetColumnComment",
	"SetTableComment",
	"SetTableProperties",
	"TruncateTable",
	"UpdateTableColumns",
}
