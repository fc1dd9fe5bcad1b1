# Who asks, and which tables that person's subjects open.
#
# Invariant: what does not match opens nothing. Look-ups go by whole paths into the data, so that no large
# object is ever copied to answer a question.
package fedgate.subject

# Trino folds the names of catalogs, schemas, tables and columns to lower case, and so do the data. Java, Rust and Go
# do not agree on a sigma at a word's end and on an I with a dot: here each of both has one form.
folded(name) := replace(replace(lower(name), "ς", "σ"), "i\u0307", "i")

# Trino 476 writes the catalog and schema of a function beside its name; other versions nest them.
place(function) := object.get(function, "catalogSchema", function)

user := input.context.identity.user

groups contains group if some group in input.context.identity.groups

# Trino's OPA plugin sends user and groups. A role is told by a group of its name, or by `enabledRoles` where
# something sends them.
roles contains role if some role in groups

roles contains role if some role in input.context.identity.enabledRoles

matched contains user if data.fedgate.policy.subjects[user].kind == "user"

matched contains group if {
	some group in groups
	data.fedgate.policy.subjects[group].kind == "group"
}

matched contains role if {
	some role in roles
	data.fedgate.policy.subjects[role].kind == "role"
}

# The patterns of one subject that a name fits: itself, and beginnings with a star.
fitting(subject, "schema", name) := patterns if {
	startswith(name, "pg_")

	# PostgreSQL's own schemas show other people's statements and values: a mere star does not open them.
	patterns := {name} | {concat("", [start, "*"]) |
		some start in data.fedgate.policy.subjects[subject].stars.schema
		startswith(start, "pg_")
		startswith(name, start)
	}
} else := patterns if {
	patterns := {name} | {concat("", [start, "*"]) |
		some start in data.fedgate.policy.subjects[subject].stars.schema
		startswith(name, start)
	}
}

fitting(subject, level, name) := patterns if {
	level != "schema"
	patterns := {name} | {concat("", [start, "*"]) |
		some start in data.fedgate.policy.subjects[subject].stars[level]
		startswith(name, start)
	}
}

opens_catalog(subject, catalog) if {
	some first in fitting(subject, "catalog", catalog)
	data.fedgate.policy.subjects[subject].catalogs[first]
}

# Every schema and every table of the catalog.
opens_all(subject, catalog) if {
	some first in fitting(subject, "catalog", catalog)
	data.fedgate.policy.subjects[subject].scopes[first]["*"]["*"]
}

# Who opens a schema, and by which patterns. Asked once for each schema in a question, whatever its tables.
patterns(catalog, schema) := {[who, first, second] |
	some who in matched
	some first in fitting(who, "catalog", catalog)
	some second in fitting(who, "schema", schema)
	data.fedgate.policy.subjects[who].schemas[first][second]
}

# Who opens all tables of a schema, and who those that begin somehow.
opening_all(catalog, schema) := {who |
	some [who, first, second] in patterns(catalog, schema)
	data.fedgate.policy.subjects[who].scopes[first][second]["*"]
}

beginnings(catalog, schema) := {[who, start] |
	some [who, first, second] in patterns(catalog, schema)
	some start in data.fedgate.policy.subjects[who].stars.table
	start != ""
	data.fedgate.policy.subjects[who].scopes[first][second][concat("", [start, "*"])]
}

# The subjects of the asker that open a table, and those of them that are exempt.
opening(catalog, schema, table) := (opening_all(catalog, schema) | {who |
	some [who, first, second] in patterns(catalog, schema)
	data.fedgate.policy.subjects[who].scopes[first][second][table]
}) | {who |
	some [who, start] in beginnings(catalog, schema)
	startswith(table, start)
}

exempt(catalog, schema, table) := {who |
	some who in opening(catalog, schema, table)
	data.fedgate.policy.subjects[who].admin
}

opened(catalog, schema, _) if count(opening_all(catalog, schema)) > 0

opened(catalog, schema, table) if {
	some [who, first, second] in patterns(catalog, schema)
	data.fedgate.policy.subjects[who].scopes[first][second][table]
}

opened(catalog, schema, table) if {
	some [_, start] in beginnings(catalog, schema)
	startswith(table, start)
}

admin if {
	some subject in matched
	data.fedgate.policy.subjects[subject].admin
}
