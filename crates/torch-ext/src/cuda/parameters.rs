//! The parameters of a kernel, read from its source, against which the arguments of a launch are checked.

use tch::Kind;

use super::error::CudaError;
use super::program::Program;

/// The type of a kernel's parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    /// A pointer to elements of a dtype; `None` if it points to a type that is not a dtype, such as a struct.
    Pointer(Option<Kind>),
    Int,
    Float,
    Double,
}

/// The parameters of `KERNEL(name, (parameters))` in the source of `program`, in order.
pub(super) fn parameters(program: &Program, name: &str) -> Result<Vec<Parameter>, CudaError> {
    let refused = |reason: String| CudaError::Argument {
        kernel: name.to_owned(),
        reason,
    };
    let list = list_of(program.source.text, name)
        .ok_or_else(|| refused(format!("is not in {}", program.source.name)))?;
    list.split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| {
            parameter(program, text)
                .ok_or_else(|| refused(format!("its parameter `{text}` cannot be passed")))
        })
        .collect()
}

/// The text between the parentheses around the parameters of a kernel.
fn list_of<'s>(source: &'s str, name: &str) -> Option<&'s str> {
    source.split("KERNEL(").skip(1).find_map(|rest| {
        let (found, rest) = rest.split_once(',')?;
        let list = rest.trim_start().strip_prefix('(')?;
        let (list, _) = list.split_once(')')?;
        (found.trim() == name).then_some(list)
    })
}

fn parameter(program: &Program, text: &str) -> Option<Parameter> {
    let words = |text: &str| -> Vec<String> {
        let qualifiers = ["const", "volatile", "__restrict__"];
        let words = text.split_whitespace();
        words
            .filter(|word| !qualifiers.contains(word))
            .map(|word| {
                let define = program.defines.iter().find(|(name, _)| *name == word);
                define.map_or(word, |(_, value)| value).to_owned()
            })
            .collect()
    };
    if let Some((element, _)) = text.split_once('*') {
        return Some(Parameter::Pointer(
            match words(element).join(" ").as_str() {
                "float" => Some(Kind::Float),
                "double" => Some(Kind::Double),
                "bf16" => Some(Kind::BFloat16),
                // libtorch has few operators on unsigned numbers, and kernels count from zero.
                "int" | "unsigned" => Some(Kind::Int),
                "long long" => Some(Kind::Int64),
                _ => None,
            },
        ));
    }
    match words(text).as_slice() {
        [kind, _name] => match kind.as_str() {
            "int" => Some(Parameter::Int),
            "float" => Some(Parameter::Float),
            "double" => Some(Parameter::Double),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::program::Source;
    use super::*;

    static SOURCE: Source = Source {
        name: "several.cu",
        text: "KERNEL(first, (const ELEMENT *x, ELEMENT *y, const Row *rows,\n unsigned *n, int count, float eps,
                              double scale)) {}
               KERNEL(none, ()) {}
               KERNEL(wrong, (long count)) {}",
    };

    #[test]
    fn types_are_those_of_the_source_and_its_macros() {
        let program = Program {
            source: &SOURCE,
            defines: vec![("ELEMENT", "bf16".to_owned())],
        };
        let narrow = Parameter::Pointer(Some(Kind::BFloat16));
        let expected = [
            narrow,
            narrow,
            Parameter::Pointer(None),
            Parameter::Pointer(Some(Kind::Int)),
            Parameter::Int,
            Parameter::Float,
            Parameter::Double,
        ];
        assert_eq!(parameters(&program, "first").unwrap(), expected);
        assert_eq!(parameters(&program, "none").unwrap(), []);
        let message = |name| parameters(&program, name).unwrap_err().to_string();
        assert_eq!(message("second"), "kernel `second`: is not in several.cu");
        assert!(message("wrong").contains("`long count`"));
    }
}
