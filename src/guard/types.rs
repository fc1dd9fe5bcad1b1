//! Types that a query names, by the parser's variants.
//!
//! Invariant: each variant is judged under the name that PostgreSQL looks up, in all schemas.

use sqlparser::ast::{ArrayElemTypeDef, DataType, ObjectName, TimezoneInfo};

use super::names::Names;
use super::walk::{offset, parts};
use crate::guard::Refusal;

type Result = std::result::Result<(), Refusal>;

pub(super) fn data_type(names: &Names<'_>, data_type: &DataType) -> Result {
    let name = match data_type {
        DataType::Custom(name, _modifiers) => return custom(names, name),
        DataType::Array(element) => {
            return match element {
                ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::Qualified(element, _) => {
                    self::data_type(names, element)
                }
                ArrayElemTypeDef::None
                | ArrayElemTypeDef::AngleBracket(_)
                | ArrayElemTypeDef::Parenthesis(_) => foreign(),
            };
        }
        DataType::Character(_) | DataType::Char(_) => "bpchar",
        DataType::CharacterVarying(_) | DataType::CharVarying(_) | DataType::Varchar(_) => "varchar",
        DataType::Numeric(_) | DataType::Decimal(_) | DataType::Dec(_) => "numeric",
        DataType::Float(_) | DataType::Double(_) | DataType::DoublePrecision | DataType::Float8 => "float8",
        DataType::Real | DataType::Float4 => "float4",
        DataType::SmallInt(_) | DataType::Int2(_) => "int2",
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => "int4",
        DataType::BigInt(_) | DataType::Int8(_) => "int8",
        DataType::Bool | DataType::Boolean => "bool",
        DataType::Date => "date",
        DataType::Time(_, zone) => match zone {
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => "time",
            TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => "timetz",
        },
        DataType::Timestamp(_, zone) => match zone {
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => "timestamp",
            TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => "timestamptz",
        },
        DataType::Interval { fields: _, precision: _ } => "interval",
        DataType::JSON => "json",
        DataType::JSONB => "jsonb",
        DataType::Regclass => "regclass",
        DataType::Text => "text",
        DataType::Bytea => "bytea",
        DataType::Uuid => "uuid",
        DataType::Bit(_) => "bit",
        DataType::BitVarying(_) | DataType::VarBit(_) => "varbit",
        DataType::TsVector => "tsvector",
        DataType::TsQuery => "tsquery",
        DataType::Table(_)
        | DataType::NamedTable { name: _, columns: _ }
        | DataType::Nvarchar(_)
        | DataType::CharacterLargeObject(_)
        | DataType::CharLargeObject(_)
        | DataType::Clob(_)
        | DataType::Binary(_)
        | DataType::Varbinary(_)
        | DataType::Blob(_)
        | DataType::TinyBlob
        | DataType::MediumBlob
        | DataType::LongBlob
        | DataType::Bytes(_)
        | DataType::DecimalUnsigned(_)
        | DataType::BigNumeric(_)
        | DataType::BigDecimal(_)
        | DataType::DecUnsigned(_)
        | DataType::FloatUnsigned(_)
        | DataType::TinyInt(_)
        | DataType::TinyIntUnsigned(_)
        | DataType::UTinyInt
        | DataType::Int2Unsigned(_)
        | DataType::SmallIntUnsigned(_)
        | DataType::USmallInt
        | DataType::MediumInt(_)
        | DataType::MediumIntUnsigned(_)
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Int128
        | DataType::Int256
        | DataType::IntUnsigned(_)
        | DataType::Int4Unsigned(_)
        | DataType::IntegerUnsigned(_)
        | DataType::HugeInt
        | DataType::UHugeInt
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::UInt128
        | DataType::UInt256
        | DataType::BigIntUnsigned(_)
        | DataType::UBigInt
        | DataType::Int8Unsigned(_)
        | DataType::Signed
        | DataType::SignedInteger
        | DataType::Unsigned
        | DataType::UnsignedInteger
        | DataType::Float32
        | DataType::Float64
        | DataType::RealUnsigned
        | DataType::DoubleUnsigned(_)
        | DataType::DoublePrecisionUnsigned
        | DataType::Date32
        | DataType::Datetime(_)
        | DataType::Datetime64(_, _)
        | DataType::TimestampNtz(_)
        | DataType::TinyText
        | DataType::MediumText
        | DataType::LongText
        | DataType::String(_)
        | DataType::FixedString(_)
        | DataType::Map(_, _, _)
        | DataType::Tuple(_)
        | DataType::Nested(_)
        | DataType::Enum(_, _)
        | DataType::Set(_)
        | DataType::Struct(_, _)
        | DataType::Union(_)
        | DataType::Nullable(_)
        | DataType::LowCardinality(_)
        | DataType::Unspecified
        | DataType::Trigger
        | DataType::AnyType
        | DataType::GeometricType(_) => return foreign(),
    };
    names.r#type(&[name], None)
}

fn custom(names: &Names<'_>, name: &ObjectName) -> Result {
    let Some(idents) = parts(name) else { return foreign() };
    let parts: Vec<&str> = idents.iter().map(|ident| ident.value.as_str()).collect();
    names.r#type(&parts, idents.last().and_then(|ident| offset(ident.span)))
}

fn foreign() -> Result {
    Err(Refusal::unverified("a type that PostgreSQL does not have"))
}
