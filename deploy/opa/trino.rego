# What Trino may do with the catalog climscore: read. A second line beside fedgate, which refuses the rest anyway.
package trino

default allow := false

# Everything that is not about climscore is not this policy's business.
allow if not about_climscore

allow if {
	about_climscore
	input.action.operation in reads
}

reads := {
	"AccessCatalog",
	"FilterCatalogs",
	"FilterColumns",
	"FilterFunctions",
	"FilterSchemas",
	"FilterTables",
	"SelectFromColumns",
	"ShowColumns",
	"ShowCreateSchema",
	"ShowCreateTable",
	"ShowFunctions",
	"ShowSchemas",
	"ShowTables",
}

# The catalog's name stands at different depths: table, schema, function, the target of a rename.
about_climscore if {
	some path, value
	walk(input.action, [path, value])
	path[count(path) - 1] == "catalogName"
	value == "climscore"
}

about_climscore if input.action.resource.catalog.name == "climscore"

about_climscore if input.action.resource.catalogSessionProperty.catalogName == "climscore"
