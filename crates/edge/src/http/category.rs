//! An event's category as a word.

use kernel::{Category, Problem, Rejection};

/// The category that a word names.
pub(crate) fn parse(word: &str) -> Result<Category, Rejection> {
    match word {
        "domain" => Ok(Category::Domain),
        "integration" => Ok(Category::Integration),
        "system" => Ok(Category::System),
        _ => {
            let message = "is none of domain, integration, system".to_owned();
            Err(Rejection::invalid(&[Problem { pointer: "/category".into(), message }]))
        }
    }
}

/// The word for a category.
pub(crate) fn word(category: Category) -> &'static str {
    match category {
        Category::Domain => "domain",
        Category::Integration => "integration",
        Category::System => "system",
    }
}
