# Who asks, and which tables that person's subjects open.
#
# Invariant: what does not match opens nothing. Look-ups go by whole paths into the data, so that no large
# object is ever copied to answer a question.
package fedgate.subject

# Trino folds the names of catalogs, schemas, tables and columns to lower case, and so do the data.
folded(name) := lower(name)

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

opens_schema(subject, catalog, schema) if {
	some first in fitting(subject, "catalog", catalog)
	some second in fitting(subject, "schema", schema)
	data.fedgate.policy.subjects[subject].schemas[first][second]
}

opens_table(subject, catalog, schema, table) if {
	some first in fitting(subject, "catalog", catalog)
	some second in fitting(subject, "schema", schema)
	some third in fitting(subject, "table", table)
	data.fedgate.policy.subjects[subject].scopes[first][second][third]
}

# The subjects of the asker that open a table, and those of them that are exempt.
opening(catalog, schema, table) := {subject |
	some subject in matched
	opens_table(subject, catalog, schema, table)
}

exempt(catalog, schema, table) := {subject |
	some subject in opening(catalog, schema, table)
	data.fedgate.policy.subjects[subject].admin
}

admin if {
	some subject in matched
	data.fedgate.policy.subjects[subject].admin
}
