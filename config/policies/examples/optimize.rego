# What is to be as low or as high as can be. All strategies and all goals count; what is chosen has the lowest sum of
#   weight * (value - least) * 100 / (most - least)        for "min", and from the other end for "max",
# over the modules, clusters, storage accounts and ways between regions that are used. Weights may be text or numbers.
package adminconfig

import rego.v1

optimize contains {
	"policy": {"ID": "cheap-copies", "version": "0.1", "description": "Copies are stored where it costs least"},
	"strategy": [
		{"attribute": "storage-cost", "directive": "min", "weight": "0.7"},
		{"attribute": "latency", "directive": "min", "weight": 0.3},
	],
} if {
	input.request.usage in {"read", "copy"}
}

# An attribute may also restrict: here, no account above 95 when data leaves its region.
config contains {"capability": "copy", "decision": {
	"policy": {"ID": "copy-restrict-storage", "version": "0.1", "description": "Copies to other regions go to cheap storage"},
	"restrictions": {"storageaccounts": [{"property": "storage-cost", "range": {"max": 95}}]},
}} if {
	input.request.usage == "copy"
	input.request.dataset.geography != input.workload.cluster.metadata.region
}

# A policy for the month of its trial: before and after, it decides nothing.
config contains {"capability": "copy", "decision": {
	"policy": {"ID": "copy-trial", "policySetID": "trial", "version": "0.1", "description": "No copies in the trial"},
	"deploy": "False",
}} if {
	input.request.usage == "read"
	time.now_ns() >= time.parse_rfc3339_ns("2026-01-01T00:00:00Z")
	time.now_ns() < time.parse_rfc3339_ns("2026-02-01T00:00:00Z")
}
