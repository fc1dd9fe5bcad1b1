# Which expression takes the place of a column, and which rows of a table stay.
#
# Invariant: in doubt the stronger mask, and NULL where nothing else can be said; a number of a mask is
# greater when the mask is stronger.
package fedgate.masks

import data.fedgate.subject

# How a table is seen: by admins as their own entries say; by whoever opens it as their entries and the column's
# tag say; else, and where a subject without any entry is among those, as strictly as anybody.
seen(catalog, schema, table) := "exempt" if {
	count(subject.exempt(catalog, schema, table)) > 0
} else := "strictly" if {
	count(subject.opening(catalog, schema, table)) == 0
} else := "strictly" if {
	some who in subject.opening(catalog, schema, table)
	data.fedgate.policy.subjects[who].bare
} else := "ordinarily"

number(catalog, schema, table, column) := chosen(
	data.fedgate.policy.tables[catalog][schema][table].columns[column],
	seen(catalog, schema, table), catalog, schema, table,
)

chosen(shape, "strictly", _, _, _) := data.fedgate.policy.shapes[shape].any

# Nobody has an entry of its own that says anything else than the tag.
chosen(shape, "ordinarily", _, _, _) := data.fedgate.policy.shapes[shape].tagged if {
	not data.fedgate.policy.shapes[shape].personal
}

# An entry counts with or without a scope; who has none gets what the tag says.
chosen(shape, "ordinarily", catalog, schema, table) := max({mask |
	some who in subject.matched
	mask := data.fedgate.policy.shapes[shape].own[who]
} | {mask |
	mask := data.fedgate.policy.shapes[shape].tagged
	some who in subject.opening(catalog, schema, table)
	not data.fedgate.policy.shapes[shape].own[who]
}) if {
	data.fedgate.policy.shapes[shape].personal
}

chosen(shape, "exempt", catalog, schema, table) := max({mask |
	some who in subject.exempt(catalog, schema, table)
	mask := data.fedgate.policy.shapes[shape].own[who]
})

# The expression for a column as the engine describes it; undefined where it is shown as it is.
expression(column) := made(mask, column) if {
	mask := data.fedgate.policy.masks[number(
		subject.folded(column.catalogName),
		subject.folded(column.schemaName),
		subject.folded(column.tableName),
		subject.folded(column.columnName),
	)]
	not mask.shows
}

# A column that does not say which one it is.
expression(column) := "NULL" if not is_string(object.get(column, "catalogName", null))

expression(column) := "NULL" if not is_string(object.get(column, "schemaName", null))

expression(column) := "NULL" if not is_string(object.get(column, "tableName", null))

expression(column) := "NULL" if not is_string(object.get(column, "columnName", null))

made(mask, column) := strings.replace_n(
	{"{column}": as_text(column), "{type}": column.columnType},
	mask.trino,
) if {
	is_text(column.columnType)
} else := sprintf("CAST(NULL AS %s)", [column.columnType]) if {
	# Anything that could end the cast, such as the quoted names of a row's fields, is not put into a text.
	regex.match(`^[A-Za-z][A-Za-z0-9_]*[A-Za-z0-9_ ,()]*$`, column.columnType)
	column.columnType != "unknown"
} else := "NULL"

is_text("varchar")

is_text(type) if regex.match(`^(varchar|char)\([0-9]+\)$`, type)

# A char(n) comes padded; PostgreSQL's own cast to text, and so the mask there, sees it without.
as_text(column) := sprintf("rtrim(CAST(%s AS varchar))", [quoted(column.columnName)]) if {
	startswith(column.columnType, "char(")
} else := quoted(column.columnName)

quoted(name) := sprintf(`"%s"`, [replace(name, `"`, `""`)])

# Every filter of every subject that counts: rows stay that pass all of them. None does of a table that does not say
# which one it is.
filters(table) := {data.fedgate.policy.filters[index] |
	some index in indices(
		subject.folded(table.catalogName),
		subject.folded(table.schemaName),
		subject.folded(table.tableName),
	)
} if {
	named_table(table)
} else := {"false"}

named_table(table) if {
	every key in ["catalogName", "schemaName", "tableName"] {
		is_string(table[key])
	}
}

indices(catalog, schema, table) := {index |
	some who in subject.exempt(catalog, schema, table)
	some index in data.fedgate.policy.tables[catalog][schema][table].filters.own[who]
} if {
	count(subject.exempt(catalog, schema, table)) > 0
} else := {index |
	some who in subject.matched
	some index in data.fedgate.policy.tables[catalog][schema][table].filters.own[who]
} | {index |
	some who in subject.opening(catalog, schema, table)
	data.fedgate.policy.subjects[who].bare
	some index in data.fedgate.policy.tables[catalog][schema][table].filters.all
} if {
	count(subject.opening(catalog, schema, table)) > 0
} else := {index |
	some index in data.fedgate.policy.tables[catalog][schema][table].filters.all
}

# May somebody read a catalog by raw SQL, which passes by masks and filters? Only who has none there.
unveiled(catalog) if {
	some who in subject.matched
	data.fedgate.policy.subjects[who].admin
	subject.opens_all(who, catalog)
	not data.fedgate.policy.subjects[who].veiled[catalog] == "own"
}

unveiled(catalog) if {
	about := {who |
		some who in subject.matched
		concerned(who, catalog)
	}
	count(about) > 0
	every who in about {
		not data.fedgate.policy.subjects[who].veiled[catalog]
	}
}

concerned(who, catalog) if subject.opens_catalog(who, catalog)

concerned(who, catalog) if data.fedgate.policy.subjects[who].veiled[catalog] == "own"
