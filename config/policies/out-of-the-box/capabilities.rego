# Which capability a request is served by, and which ones it has nothing to do with.
#
# `input.request.usage` is one of read, write, copy and delete. Each of them deploys the capability of its own name and
# turns the others off; reading leaves copies open, for a policy of the extended folder to allow.
package adminconfig

import rego.v1

serving := {
	"read": {"ID": "read-default-enabled", "version": "0.1", "description": "Workloads that read get the read capability"},
	"write": {"ID": "write-default-enabled", "version": "0.1", "description": "Workloads that write get the write capability"},
	"copy": {"ID": "copy-request", "version": "0.1", "description": "The user asked for a copy"},
	"delete": {"ID": "delete-request", "version": "0.1", "description": "The user asked for a deletion"},
}

idle := {
	"read": {"ID": "read-disabled", "version": "0.1", "description": "Nobody asked to read"},
	"write": {"ID": "write-disabled", "version": "0.1", "description": "Nobody asked to write"},
	"copy": {"ID": "copy-disabled", "version": "0.1", "description": "Nobody asked for a copy"},
	"delete": {"ID": "delete-disabled", "version": "0.1", "description": "Nobody asked for a deletion"},
}

# A read may have a copy made on its way.
left_open contains "copy" if input.request.usage == "read"

config contains {"capability": capability, "decision": {"policy": policy, "deploy": "True"}} if {
	some capability, policy in serving
	input.request.usage == capability
}

config contains {"capability": capability, "decision": {"policy": policy, "deploy": "False"}} if {
	some capability, policy in idle
	input.request.usage != capability
	not capability in left_open
}
