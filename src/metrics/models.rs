//! The names of models as labels: a bounded number of them, because clients choose them freely.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

/// Maximum number of model names that have labels of their own, in addition to those in the settings.
pub const MODELS_MAX: usize = 100;
/// The label of all other models.
pub const OTHER_MODEL: &str = "other";
/// Maximum length of a name, in bytes. Longer ones are not names of models.
const NAME_BYTES_MAX: usize = 256;

/// The names that have labels.
#[derive(Debug, Default)]
pub(super) struct ModelNames {
    names: RwLock<Names>,
}

#[derive(Debug, Default)]
struct Names {
    known: HashSet<Arc<str>>,
    /// How many of them are in the settings.
    reserved: usize,
}

impl ModelNames {
    /// Adds a name of the settings.
    pub fn reserve(&self, name: &str) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if names.known.insert(name.into()) {
            names.reserved += 1;
        }
    }

    /// Returns the label of a model that has answered. Adds its name while there is room.
    pub fn label(&self, name: &str) -> Arc<str> {
        if let Some(known) = self.find(name) {
            return known;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if name.len() > NAME_BYTES_MAX || names.known.len() >= MODELS_MAX + names.reserved {
            return OTHER_MODEL.into();
        }
        let name: Arc<str> = name.into();
        names.known.insert(name.clone());
        name
    }

    /// Returns the label of a model that has not answered: its name, if it has answered before.
    pub fn known(&self, name: &str) -> Arc<str> {
        self.find(name).unwrap_or_else(|| OTHER_MODEL.into())
    }

    fn find(&self, name: &str) -> Option<Arc<str>> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).known.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_while_there_is_room_and_those_of_the_settings_always() {
        let names = ModelNames::default();
        names.reserve("configured");

        for number in 0..MODELS_MAX {
            assert_eq!(&*names.label(&format!("model-{number}")), format!("model-{number}"));
        }

        assert_eq!(&*names.label("one-more"), OTHER_MODEL);
        assert_eq!(&*names.label("model-7"), "model-7");
        assert_eq!(&*names.label("configured"), "configured");
    }

    #[test]
    fn a_model_that_has_not_answered_and_a_long_name_are_not_labels() {
        let names = ModelNames::default();

        assert_eq!(&*names.known("invented"), OTHER_MODEL);
        assert_eq!(&*names.label(&"x".repeat(NAME_BYTES_MAX + 1)), OTHER_MODEL);
        names.label("real");
        assert_eq!(&*names.known("real"), "real");
    }
}
