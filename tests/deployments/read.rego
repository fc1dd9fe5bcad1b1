package adminconfig

import rego.v1

config contains {"capability": "read", "decision": {
	"policy": {"ID": "read-here", "description": "Reads are deployed in the north", "version": "0.1"},
	"deploy": "True",
}} if {
	input.request.usage == "read"
	input.workload.cluster.name == "cluster-north"
}
