# Where capabilities are put. These are examples that suit many; change them, or leave the folder out.
package adminconfig

import rego.v1

# What governance demands, such as masking, is done where the data is at home, so that it leaves in its final form.
config contains {"capability": "transform", "decision": {
	"policy": {"ID": "transform-geo", "version": "0.1", "description": "Data is transformed in the geography where it is stored"},
	"restrictions": {"clusters": [{"property": "metadata.region", "values": [input.request.dataset.geography]}]},
}} if {
	input.request.dataset.geography
}

# One reader for each workload, beside the workload.
config contains {"capability": "read", "decision": {
	"policy": {"ID": "read-scope", "version": "0.1", "description": "A reader serves one workload"},
	"restrictions": {"modules": [{"property": "capabilities.scope", "values": ["workload"]}]},
}} if {
	input.request.usage == "read"
}

config contains {"capability": "read", "decision": {
	"policy": {"ID": "read-location", "version": "0.1", "description": "A reader runs in the workload's cluster"},
	"restrictions": {"clusters": [{"property": "name", "values": [input.workload.cluster.name]}]},
}} if {
	input.request.usage == "read"
}

# Whether a read has a copy made on its way is left to what costs least.
config contains {"capability": "copy", "decision": {
	"policy": {"ID": "copy-default", "version": "0.1", "description": "Reading may have copies made"},
}} if {
	input.request.usage == "read"
}
