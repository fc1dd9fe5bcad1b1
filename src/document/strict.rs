//! JSON text to values, without guessing.
//!
//! Invariant: a name that an object says twice is an error. serde_json would keep the last and other
//! readers the first, and then two parts of a system enforce two policies from one text.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::DocumentError;

/// The object that a text is; numbers keep their spelling, and objects their order.
pub(super) fn object(text: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    let json = |error: serde_json::Error| DocumentError::Json(error.to_string());
    Unique.deserialize(&mut serde_json::Deserializer::from_slice(text)).map_err(json)?;
    match serde_json::from_slice(text).map_err(json)? {
        Value::Object(object) => Ok(object),
        _ => Err(DocumentError::Json("it is not an object".to_owned())),
    }
}

/// Reads a value for nothing but names that are said twice.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        while access.next_element_seed(Unique)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = access.next_key::<String>()? {
            access.next_value_seed(Unique)?;
            if let Some(twice) = names.replace(name) {
                return Err(A::Error::custom(format_args!("{twice:?} is said twice in one object")));
            }
        }
        Ok(())
    }
}
