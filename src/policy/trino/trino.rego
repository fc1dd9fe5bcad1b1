# Where Trino's OPA plugin asks. Leave this file out if there is a `package trino` already, and call
# `data.fedgate.trino` and `data.fedgate.readonly` from there.
package trino

import data.fedgate.trino as answers

allow := answers.allow

batch := answers.batch

rowFilters := answers.rowFilters

columnMask := answers.columnMask

batchColumnMasks := answers.batchColumnMasks
