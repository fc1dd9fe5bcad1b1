# The cases of tests/policy/*.yaml, which tests/policy.rs spells out into data.cases.
package cases_test

test_cases if {
	failed := [sprintf("%s: %s, wanted %s", [case.note, json.marshal(answer(case)), json.marshal(case.want)]) |
		some case in data.cases
		answer(case) != case.want
	]
	every line in failed {
		print(line)
	}
	count(failed) == 0
}

# None or one; sets as the sorted lists that they are in JSON.
answer(case) := [got | got := data.trino.allow with input as case.input] if case.ask == "allow"

answer(case) := [got | got := [one | some one in data.trino.batch] with input as case.input] if case.ask == "batch"

answer(case) := [got | got := [one | some one in data.trino.rowFilters] with input as case.input] if case.ask == "rowFilters"

answer(case) := [got | got := data.trino.columnMask with input as case.input] if case.ask == "columnMask"

answer(case) := [got | got := [one | some one in data.trino.batchColumnMasks] with input as case.input] if {
	case.ask == "batchColumnMasks"
}

answer(case) := [got | got := data.fedgate.readonly.deny with input as case.input] if case.ask == "deny"

# While there are no data nothing passes.
test_without_data if {
	data.fedgate.readonly.deny with data.fedgate.policy as {} with input as {"action": {"operation": "ExecuteQuery"}}
	not data.trino.allow with data.fedgate.policy as {} with input as {"action": {"operation": "ExecuteQuery"}}
}

others(setting) := object.union(data.fedgate.policy.settings, {"other_catalogs": setting})

tpch(operation) := {
	"context": {"identity": {"user": "visitor"}},
	"action": {
		"operation": operation,
		"resource": {"table": {"catalogName": "tpch", "schemaName": "tiny", "tableName": "nation"}},
	},
}

asked(operation, resource) := {
	"context": {"identity": {"user": "visitor"}},
	"action": {"operation": operation, "resource": resource},
}

test_other_catalogs_read if {
	every case in [
		tpch("SelectFromColumns"),
		asked("AccessCatalog", {"catalog": {"name": "tpch"}}),
		asked("ShowTables", {"schema": {"catalogName": "tpch", "schemaName": "tiny"}}),
	] {
		data.trino.allow with input as case with data.fedgate.policy.settings as others("read")
		data.trino.allow with input as case with data.fedgate.policy.settings as others("allow")
		not data.trino.allow with input as case
	}
	not data.trino.allow with input as tpch("DropTable") with data.fedgate.policy.settings as others("read")
}

test_other_catalogs_allow if {
	data.trino.allow with input as tpch("DropTable") with data.fedgate.policy.settings as others("allow")
	not data.trino.allow with input as asked("DropCatalog", {"catalog": {"name": "climscore"}})
		with data.fedgate.policy.settings as others("allow")
	not data.trino.allow with input as asked("ReadSystemInformation", {})
		with data.fedgate.policy.settings as others("allow")
	not data.trino.allow with input as asked("CreateTable", {"table": {"catalogName": "system", "schemaName": "x", "tableName": "y"}})
		with data.fedgate.policy.settings as others("allow")
}

# What the document masks is nobody's to write, source or not: renamed, a table would have no mask.
test_what_is_masked_is_no_other_catalog if {
	known := object.union(data.fedgate.policy.known, {"tpch": true})
	every operation in ["DropTable", "SelectFromColumns"] {
		not data.trino.allow with input as tpch(operation)
			with data.fedgate.policy.settings as others("allow")
			with data.fedgate.policy.known as known
	}
	execute := asked("ExecuteProcedure", {"function": {"catalogName": "tpch", "schemaName": "system", "functionName": "execute"}})
	data.fedgate.readonly.deny with input as execute with data.fedgate.policy.known as known
	data.fedgate.readonly.deny == false with input as execute
}

# An opened source is guarded again as soon as either place says so.
test_both_markers_count if {
	drop := asked("DropTable", {"table": {"catalogName": "sandbox", "schemaName": "public", "tableName": "t"}})
	data.fedgate.readonly.deny == false with input as drop
	data.fedgate.readonly.deny with input as drop with data.akko.sandbox.read_only as true
	data.fedgate.readonly.deny with input as drop with data.fedgate.policy.catalogs.sandbox.read_only as true
}
