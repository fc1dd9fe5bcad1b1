//! Status handles.
