//! Metric handles.
