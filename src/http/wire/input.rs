//! `input`: a string, strings, one token array, or token arrays. Element 0 decides which; the first item of another
//! kind is named.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::scalar::{Scalar, ScalarVisitor, integer};
use super::{Caps, Fault};
use crate::request::{RawInputs, RequestError};

/// Reads the value of `input`; `None` for `null`.
pub(super) struct InputSeed<'a> {
    pub(super) caps: Caps,
    pub(super) fault: &'a mut Option<Fault>,
}

/// What was read, and why it may have to be refused later.
pub(super) struct Input {
    pub(super) inputs: RawInputs,
    pub(super) refusal: Option<RequestError>,
}

/// Token ids stored at most, as a multiple of the request's limit: arrays that a model cuts may be this much longer.
const STORED_IDS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Texts,
    Ids,
    Arrays,
}

/// The outer list while it is read.
struct Items<'a> {
    caps: Caps,
    fault: &'a mut Option<Fault>,
    shape: Option<Shape>,
    texts: Vec<String>,
    ids: Vec<i64>,
    arrays: Vec<Vec<i64>>,
    /// Items read, stored or not.
    n_read: usize,
    /// Ids read, stored or not.
    n_ids: usize,
}

impl<'de> DeserializeSeed<'de> for InputSeed<'_> {
    type Value = Option<Input>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl InputSeed<'_> {
    fn wrong(self, got: &Scalar) -> Option<Input> {
        let expected = "a string or an array";
        self.fault.get_or_insert(Fault { place: "input".to_owned(), expected, got: got.kind() });
        None
    }
}

impl<'de> Visitor<'de> for InputSeed<'_> {
    type Value = Option<Input>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        let inputs = RawInputs::Texts { single: true, texts: vec![text.to_owned()] };
        Ok(Some(Input { inputs, refusal: None }))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.wrong(&Scalar::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.wrong(&Scalar::Integer(value)))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(self.wrong(&Scalar::Integer(0)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.wrong(&integer(value)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.wrong(&Scalar::Object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Items {
            caps: self.caps,
            fault: self.fault,
            shape: None,
            texts: Vec::new(),
            ids: Vec::new(),
            arrays: Vec::new(),
            n_read: 0,
            n_ids: 0,
        };
        while seq.next_element_seed(Item(&mut items))?.is_some() {
            items.n_read += 1;
        }
        Ok(Some(items.finish()))
    }
}

impl Items<'_> {
    fn max_ids(&self) -> usize {
        self.caps.max_request_tokens.saturating_mul(STORED_IDS)
    }

    /// Whether the item at hand has the shape that the first one chose.
    fn fits(&mut self, shape: Shape) -> bool {
        *self.shape.get_or_insert(shape) == shape
    }

    fn text(&mut self, text: &str) {
        if !self.fits(Shape::Texts) {
            self.odd(&Scalar::Text(String::new()));
        } else if self.texts.len() <= self.caps.max_inputs {
            self.texts.push(text.to_owned());
        }
    }

    fn id(&mut self, id: i64) {
        if !self.fits(Shape::Ids) {
            return self.odd(&Scalar::Integer(id));
        }
        self.n_ids += 1;
        if self.ids.len() < self.max_ids() {
            self.ids.push(id);
        }
    }

    /// Anything that no list may hold, or not this one.
    fn odd(&mut self, got: &Scalar) {
        let expected = match self.shape {
            None if *got == Scalar::Fraction => "an integer",
            None => "a string, an integer or an array of integers",
            Some(Shape::Texts) => "a string",
            Some(Shape::Ids) => "an integer",
            Some(Shape::Arrays) => "an array of integers",
        };
        let place = format!("input[{}]", self.n_read);
        self.fault.get_or_insert(Fault { place, expected, got: got.kind() });
    }

    /// One id of the token array at hand.
    fn inner(&mut self, array: &mut Vec<i64>, position: usize, value: &Scalar) {
        if let Scalar::Integer(id) = value {
            self.n_ids += 1;
            // An array is stored as long as the total allows; what is left out is refused by the total.
            if self.n_ids <= self.max_ids() {
                array.push(*id);
            }
        } else {
            let place = format!("input[{}][{position}]", self.n_read);
            self.fault.get_or_insert(Fault { place, expected: "an integer", got: value.kind() });
        }
    }

    fn finish(self) -> Input {
        let (tokens, limit) = (self.n_ids, self.caps.max_request_tokens);
        let refusal = (tokens > self.max_ids()).then_some(RequestError::TooManyTokens { tokens, limit });
        let inputs = match self.shape {
            None => RawInputs::Texts { single: false, texts: Vec::new() },
            Some(Shape::Texts) => RawInputs::Texts { single: false, texts: self.texts },
            Some(Shape::Ids) => RawInputs::Tokens { single: true, arrays: vec![self.ids] },
            Some(Shape::Arrays) => RawInputs::Tokens { single: false, arrays: self.arrays },
        };
        Input { inputs, refusal }
    }
}

/// One item of the outer list.
struct Item<'a, 'b>(&'a mut Items<'b>);

impl<'de> DeserializeSeed<'de> for Item<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Item<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.text(text);
        Ok(())
    }

    fn visit_i64<E>(self, id: i64) -> Result<(), E> {
        self.0.id(id);
        Ok(())
    }

    fn visit_u64<E>(self, id: u64) -> Result<(), E> {
        self.0.id(i64::try_from(id).unwrap_or(i64::MAX));
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        let value = integer(value);
        if let Scalar::Integer(id) = value {
            self.0.id(id);
        } else {
            self.0.odd(&value);
        }
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.odd(&Scalar::Bool(value));
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.odd(&Scalar::Null);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let object = ScalarVisitor.visit_map(map)?;
        self.0.odd(&object);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let items = self.0;
        if !items.fits(Shape::Arrays) {
            items.odd(&ScalarVisitor.visit_seq(seq)?);
            return Ok(());
        }
        let (mut array, mut position) = (Vec::new(), 0);
        while let Some(value) = seq.next_element::<Scalar>()? {
            items.inner(&mut array, position, &value);
            position += 1;
        }
        if items.arrays.len() <= items.caps.max_inputs {
            items.arrays.push(array);
        }
        Ok(())
    }
}
