package trino_test

import data.trino

table(operation) := {"action": {
	"operation": operation,
	"resource": {"table": {"catalogName": "climscore", "schemaName": "public", "tableName": "communes"}},
}}

test_reads_pass if {
	trino.allow with input as table("SelectFromColumns")
	trino.allow with input as table("FilterTables")
}

test_writes_do_not if {
	every operation in ["InsertIntoTable", "DeleteFromTable", "CreateTable", "DropTable", "TruncateTable", "AddColumn"] {
		not trino.allow with input as table(operation)
	}
}

test_raw_sql_does_not if {
	every operation in ["ExecuteFunction", "ExecuteProcedure", "ExecuteTableProcedure"] {
		not trino.allow with input as {"action": {
			"operation": operation,
			"resource": {"function": {"catalogSchema": {"catalogName": "climscore", "schemaName": "system"}, "functionName": "query"}},
		}}
	}
}

test_a_rename_into_it_does_not if {
	not trino.allow with input as {"action": {
		"operation": "RenameTable",
		"resource": {"table": {"catalogName": "other", "schemaName": "a", "tableName": "b"}},
		"targetResource": {"table": {"catalogName": "climscore", "schemaName": "public", "tableName": "b"}},
	}}
}

test_other_catalogs_are_left_alone if {
	trino.allow with input as {"action": {"operation": "DropTable", "resource": {"table": {"catalogName": "tpch"}}}}
	trino.allow with input as {"action": {"operation": "ExecuteQuery"}}
}
