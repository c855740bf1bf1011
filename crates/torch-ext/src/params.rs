//! Named sets of weights, and their initialisation.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::fmt::Display;

use tch::{Device, Kind, Tensor};

use crate::{Generator, TorchError, optim};

/// The initialisation of a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// All the same value.
    Constant(f64),
    /// Normal with mean zero.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width.
        bound: f64,
    },
    /// Uniform in `[-b, b)` with `b = sqrt(6 / (fan_in + fan_out))` (Glorot). `fan_out` is the first
    /// dimension, `fan_in` the product of the others.
    XavierUniform,
}

/// A named weight or buffer.
#[derive(Debug)]
pub struct Param {
    /// Full name, as in a PyTorch state dict.
    pub name: String,
    /// The value. It shares storage with the model's own handle, unless there is a `copy`.
    pub tensor: Tensor,
    /// Whether the optimiser updates it. Buffers are in the state dict but not trainable.
    pub trainable: bool,
    /// The tensor that the model uses, and that receives gradients, after [`Params::keep_copies`].
    pub copy: Option<Tensor>,
    /// Whether it was declared by [`Scope::cast_var`].
    cast: bool,
}

impl Param {
    /// The tensor that the model uses, and that receives gradients.
    pub fn leaf(&self) -> &Tensor {
        self.copy.as_ref().unwrap_or(&self.tensor)
    }
}

/// An ordered set of named weights: a model's state dict, in order of declaration.
///
/// Weights are initialised on the CPU and then moved, so that a seed returns the same weights on every
/// device.
#[derive(Debug)]
pub struct Params {
    device: Device,
    generator: RefCell<Generator>,
    entries: RefCell<Vec<Param>>,
}

impl Params {
    /// An empty set. Its weights are initialised from `seed` and live on `device`.
    ///
    /// # Errors
    /// libtorch cannot create a generator.
    pub fn new(device: Device, seed: u64) -> Result<Self, TorchError> {
        Ok(Self {
            device,
            generator: RefCell::new(Generator::new(Device::Cpu, seed)?),
            entries: RefCell::new(Vec::new()),
        })
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The scope without a name prefix.
    pub fn root(&self) -> Scope<'_> {
        Scope {
            params: self,
            prefix: String::new(),
        }
    }

    /// All weights and buffers, in order of declaration.
    pub fn entries(&self) -> Ref<'_, [Param]> {
        Ref::map(self.entries.borrow(), Vec::as_slice)
    }

    /// The weight or buffer with this full name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.entries
            .borrow()
            .iter()
            .find(|param| param.name == name)
            .map(|param| param.tensor.shallow_clone())
    }

    /// Handles of the trainable weights, in order of declaration.
    pub fn trainable(&self) -> Vec<Tensor> {
        self.entries
            .borrow()
            .iter()
            .filter(|param| param.trainable)
            .map(|param| param.tensor.shallow_clone())
            .collect()
    }

    /// The trainable weights that the model uses, and that receive gradients: those of
    /// [`Params::trainable`], or their copies.
    pub fn leaves(&self) -> Vec<Tensor> {
        self.entries
            .borrow()
            .iter()
            .filter(|param| param.trainable)
            .map(|param| param.leaf().shallow_clone())
            .collect()
    }

    /// Names and handles of all weights and buffers, in order of declaration.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.entries
            .borrow()
            .iter()
            .map(|param| (param.name.clone(), param.tensor.shallow_clone()))
            .collect()
    }

    /// Size of all weights and buffers in bytes, without copies.
    pub fn bytes(&self) -> u64 {
        let entries = self.state_dict();
        let sizes = entries
            .iter()
            .map(|(_, tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64);
        sizes.sum()
    }

    /// Number of trainable scalars.
    pub fn count(&self) -> usize {
        self.entries
            .borrow()
            .iter()
            .filter(|param| param.trainable)
            .map(|param| param.tensor.numel())
            .sum()
    }

    /// Gives the model copies in `kind` of the weights that were declared by [`Scope::cast_var`], so that
    /// autocast need not cast them in each pass. The copies have the same bits as autocast's casts. Their
    /// gradients have dtype `kind`, as those of autocast's casts before they are widened. The set itself
    /// keeps float32 weights, and [`Params::load`] updates both. Code that changes the weights in another
    /// way must update the copies too.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn keep_copies(&self, kind: Kind) -> Result<(), TorchError> {
        for param in self.entries.borrow_mut().iter_mut() {
            if param.cast && param.copy.is_none() {
                let weight = param.tensor.f_detach()?;
                let mut master = weight.f_empty_like()?;
                master.f_copy_(&weight)?;
                // All of the model's handles refer to this tensor, so replacing its data reaches them all.
                let mut model = std::mem::replace(&mut param.tensor, master);
                model.f_set_data(&param.tensor.f_to_kind(kind)?)?;
                param.copy = Some(model);
            }
        }
        Ok(())
    }

    /// Copies a state dict into the weights in place. Names must match exactly.
    ///
    /// # Errors
    /// Names are missing or unexpected (unexpected names come with their nearest match), or a shape
    /// differs. In these cases nothing is changed.
    pub fn load(&self, tensors: &[(String, Tensor)]) -> Result<(), TorchError> {
        let mismatch = self.mismatch(tensors);
        if !mismatch.missing.is_empty() || !mismatch.unexpected.is_empty() {
            return Err(TorchError::Names {
                missing: mismatch.missing,
                unexpected: mismatch.unexpected,
            });
        }
        if let Some((name, found, declared)) = mismatch.reshaped.into_iter().next() {
            return Err(TorchError::LoadShape {
                name,
                found,
                declared,
            });
        }
        self.copy(tensors)
    }

    /// Copies the entries of a state dict whose name and shape match, and returns the mismatches on both
    /// sides.
    ///
    /// # Errors
    /// A copy failed in libtorch.
    pub fn load_partial(&self, tensors: &[(String, Tensor)]) -> Result<Mismatch, TorchError> {
        let mismatch = self.mismatch(tensors);
        let fits = |name: &str| {
            !mismatch.unexpected.iter().any(|(other, _)| other == name)
                && !mismatch.reshaped.iter().any(|(other, ..)| other == name)
        };
        let fitting: Vec<(String, Tensor)> = tensors
            .iter()
            .filter(|(name, _)| fits(name))
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        self.copy(&fitting)?;
        Ok(mismatch)
    }

    /// The differences between a state dict and this set.
    fn mismatch(&self, tensors: &[(String, Tensor)]) -> Mismatch {
        let entries = self.entries.borrow();
        let declared: HashMap<&str, &Param> =
            entries.iter().map(|p| (p.name.as_str(), p)).collect();
        let loaded: HashMap<&str, &Tensor> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut mismatch = Mismatch {
            missing: entries
                .iter()
                .filter(|param| !loaded.contains_key(param.name.as_str()))
                .map(|param| param.name.clone())
                .collect(),
            ..Mismatch::default()
        };
        for (name, tensor) in tensors {
            match declared.get(name.as_str()) {
                None => {
                    let near = nearest(name, &entries);
                    mismatch.unexpected.push((name.clone(), near));
                }
                Some(param) if param.tensor.size() != tensor.size() => {
                    let sizes = (name.clone(), tensor.size(), param.tensor.size());
                    mismatch.reshaped.push(sizes);
                }
                Some(_) => {}
            }
        }
        mismatch
    }

    /// Copies weights whose names and shapes match.
    fn copy(&self, tensors: &[(String, Tensor)]) -> Result<(), TorchError> {
        let entries = self.entries.borrow();
        let declared: HashMap<&str, &Param> =
            entries.iter().map(|p| (p.name.as_str(), p)).collect();
        let (mut targets, mut sources) = (Vec::new(), Vec::new());
        for (name, tensor) in tensors {
            if let Some(param) = declared.get(name.as_str()) {
                targets.push(param.tensor.shallow_clone());
                sources.push(tensor.shallow_clone());
            }
        }
        optim::copy_(&targets, &sources)?;
        let copied = entries.iter().filter_map(|param| {
            let copy = param.copy.as_ref()?;
            Some((copy.shallow_clone(), param.tensor.shallow_clone()))
        });
        let (copies, masters): (Vec<_>, Vec<_>) = copied.unzip();
        optim::copy_(&copies, &masters)
    }

    fn declare(
        &self,
        name: String,
        (trainable, cast): (bool, bool),
        make: impl FnOnce() -> Result<Tensor, TorchError>,
    ) -> Result<Tensor, TorchError> {
        if self.get(&name).is_some() {
            return Err(TorchError::DuplicateName(name));
        }
        let tensor = make()?
            .f_to_device(self.device)?
            .f_set_requires_grad(trainable)?;
        let handle = tensor.shallow_clone();
        self.entries.borrow_mut().push(Param {
            name,
            tensor,
            trainable,
            copy: None,
            cast,
        });
        Ok(handle)
    }

    fn draw(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, TorchError> {
        let mut tensor = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
        let mut generator = self.generator.borrow_mut();
        match init {
            Init::Zeros => {}
            Init::Ones => tensor = tensor.f_fill_(1.0)?,
            Init::Constant(value) => tensor = tensor.f_fill_(value)?,
            Init::Normal { std } => generator.normal_(&mut tensor, 0.0, std)?,
            Init::Uniform { bound } => generator.uniform_(&mut tensor, -bound, bound)?,
            Init::XavierUniform => {
                let [fan_out, rest @ ..] = shape else {
                    return Err(init_error(name, shape, init));
                };
                if rest.is_empty() {
                    return Err(init_error(name, shape, init));
                }
                let fan_in: i64 = rest.iter().product();
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                generator.uniform_(&mut tensor, -bound, bound)?;
            }
        }
        Ok(tensor)
    }
}

fn init_error(name: &str, shape: &[i64], init: Init) -> TorchError {
    TorchError::Init {
        name: name.to_owned(),
        shape: shape.to_vec(),
        init: format!("{init:?}"),
    }
}

fn nearest(name: &str, entries: &[Param]) -> Option<String> {
    entries
        .iter()
        .map(|param| (strsim::jaro_winkler(name, &param.name), &param.name))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name.clone())
}

/// The differences between a state dict and a [`Params`] set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Declared, but missing in the state dict.
    pub missing: Vec<String>,
    /// In the state dict but not declared, each with the most similar declared name.
    pub unexpected: Vec<(String, Option<String>)>,
    /// Entries with a different shape: name, shape in the state dict, declared shape.
    pub reshaped: Vec<(String, Vec<i64>, Vec<i64>)>,
}

/// A name prefix in a [`Params`] set, below which weights are declared.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    params: &'a Params,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The scope `name` below this one.
    pub fn sub(&self, name: impl Display) -> Scope<'a> {
        Scope {
            params: self.params,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.params.device
    }

    /// Declares and initialises a trainable float32 weight.
    ///
    /// # Errors
    /// The name is already declared, or the shape does not suit `init`.
    pub fn var(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, TorchError> {
        self.weight(name, shape, init, false)
    }

    /// As [`Scope::var`], for a weight that is used only as a factor or bias of matrix products and
    /// convolutions, which autocast casts. [`Params::keep_copies`] may change the dtype of the tensor.
    ///
    /// # Errors
    /// The name is already declared, or the shape does not suit `init`.
    pub fn cast_var(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, TorchError> {
        self.weight(name, shape, init, true)
    }

    fn weight(
        &self,
        name: &str,
        shape: &[i64],
        init: Init,
        cast: bool,
    ) -> Result<Tensor, TorchError> {
        let full = format!("{}{name}", self.prefix);
        self.params.declare(full.clone(), (true, cast), || {
            self.params.draw(&full, shape, init)
        })
    }

    /// Declares a tensor that is in the state dict but not trained.
    ///
    /// # Errors
    /// The name is already declared.
    pub fn buffer(&self, name: &str, value: Tensor) -> Result<Tensor, TorchError> {
        self.params
            .declare(format!("{}{name}", self.prefix), (false, false), || {
                Ok(value)
            })
    }
}
