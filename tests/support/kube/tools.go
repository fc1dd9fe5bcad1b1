//go:build tools

// Package kube names the one program that this module is for: the API server that the tests start.
package kube

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
