use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::fmt::Display;

use tch::{Device, Kind, Tensor};

use crate::{Generator, TorchError, optim};

/// How a weight is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All the same value.
    Constant(f64),
    /// Normal around zero.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width.
        bound: f64,
    },
    /// Uniform in `[-b, b)` with `b = sqrt(6 / (fan_in + fan_out))` (Glorot), the weight seen as
    /// a matrix `[out, everything else]`.
    XavierUniform,
}

/// A named weight or buffer.
#[derive(Debug)]
pub struct Param {
    /// Full name, as in a PyTorch state dict.
    pub name: String,
    /// The value; shares storage with the model's own handle, unless there is a `copy`.
    pub tensor: Tensor,
    /// Whether the optimiser updates it. Buffers are not trainable but are in the state dict.
    pub trainable: bool,
    /// What the model computes with, and where gradients arrive, after [`Params::keep_copies`].
    pub copy: Option<Tensor>,
    /// Declared by [`Scope::cast_var`].
    cast: bool,
}

impl Param {
    /// The model's own handle, where gradients arrive.
    pub fn leaf(&self) -> &Tensor {
        self.copy.as_ref().unwrap_or(&self.tensor)
    }
}

/// An ordered set of named weights: a model's state dict, in order of declaration.
///
/// Weights are drawn on the CPU and then moved, so that a seed gives the same start on every
/// device.
#[derive(Debug)]
pub struct Params {
    device: Device,
    generator: RefCell<Generator>,
    entries: RefCell<Vec<Param>>,
}

impl Params {
    /// An empty set whose weights will be drawn from `seed` and live on `device`.
    ///
    /// # Errors
    /// libtorch refused to make a generator.
    pub fn new(device: Device, seed: u64) -> Result<Self, TorchError> {
        Ok(Self {
            device,
            generator: RefCell::new(Generator::new(Device::Cpu, seed)?),
            entries: RefCell::new(Vec::new()),
        })
    }

    /// Where the weights live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The place at which names have no prefix.
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

    /// The weight of that full name.
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

    /// The trainable weights as the model computes with them and gradients arrive at them: those of
    /// [`Params::trainable`], or their copies.
    pub fn leaves(&self) -> Vec<Tensor> {
        self.entries
            .borrow()
            .iter()
            .filter(|param| param.trainable)
            .map(|param| param.leaf().shallow_clone())
            .collect()
    }

    /// Names and handles of everything, in order of declaration.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.entries
            .borrow()
            .iter()
            .map(|param| (param.name.clone(), param.tensor.shallow_clone()))
            .collect()
    }

    /// Bytes that they take.
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

    /// Makes the model compute with copies in `kind` of the weights that were declared by
    /// [`Scope::cast_var`], instead of letting autocast cast them anew in each pass: they have the same
    /// bits. Their gradients arrive in `kind`, as autocast's do before they are widened. What the set
    /// holds, and [`Params::load`] takes, stays float32; who changes that otherwise writes the copies too.
    ///
    /// # Errors
    /// Out of memory.
    pub fn keep_copies(&self, kind: Kind) -> Result<(), TorchError> {
        for param in self.entries.borrow_mut().iter_mut() {
            if param.cast && param.copy.is_none() {
                let weight = param.tensor.f_detach()?;
                let mut master = weight.f_empty_like()?;
                master.f_copy_(&weight)?;
                // All handles that the model has of it are of the one tensor whose data this is.
                let mut model = std::mem::replace(&mut param.tensor, master);
                model.f_set_data(&param.tensor.f_to_kind(kind)?)?;
                param.copy = Some(model);
            }
        }
        Ok(())
    }

    /// Copies a state dict into the weights in place; names must match exactly.
    ///
    /// # Errors
    /// Missing or unexpected names (all listed, each with its nearest match) or another shape.
    /// Nothing is changed then.
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

    /// Copies those weights of a state dict that have the name and shape of one here, and returns
    /// what was left out on either side.
    ///
    /// # Errors
    /// libtorch refused a copy.
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

    /// Where a state dict differs from the weights here.
    fn mismatch(&self, tensors: &[(String, Tensor)]) -> Mismatch {
        let entries = self.entries.borrow();
        let declared: HashMap<&str, &Param> =
            entries.iter().map(|p| (p.name.as_str(), p)).collect();
        let given: HashMap<&str, &Tensor> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut mismatch = Mismatch {
            missing: entries
                .iter()
                .filter(|param| !given.contains_key(param.name.as_str()))
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

    /// Copies weights whose names and shapes fit.
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

/// Where a state dict and a [`Params`] set differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Declared but not given.
    pub missing: Vec<String>,
    /// Given but not declared, each with the nearest declared name.
    pub unexpected: Vec<(String, Option<String>)>,
    /// Given with another shape than declared: name, given, declared.
    pub reshaped: Vec<(String, Vec<i64>, Vec<i64>)>,
}

/// A place in a [`Params`] set: declares weights under a dotted prefix.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    params: &'a Params,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The place `name` below this one.
    pub fn sub(&self, name: impl Display) -> Scope<'a> {
        Scope {
            params: self.params,
            prefix: format!("{}{name}.", self.prefix),
        }
    }

    /// Where weights declared here live.
    pub fn device(&self) -> Device {
        self.params.device
    }

    /// Declares a trainable float32 weight and draws it.
    ///
    /// # Errors
    /// The name is taken, or the shape does not suit `init`.
    pub fn var(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, TorchError> {
        self.weight(name, shape, init, false)
    }

    /// As [`Scope::var`], a weight that is used in matrix products and convolutions alone, as factor or
    /// bias: what autocast casts. [`Params::keep_copies`] may turn the tensor to another dtype.
    ///
    /// # Errors
    /// The name is taken, or the shape does not suit `init`.
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
    /// The name is taken.
    pub fn buffer(&self, name: &str, value: Tensor) -> Result<Tensor, TorchError> {
        self.params
            .declare(format!("{}{name}", self.prefix), (false, false), || {
                Ok(value)
            })
    }
}
