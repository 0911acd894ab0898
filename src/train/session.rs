//! The loop that pretraining and fine-tuning share: epochs in random order, updates, a watched loss, checkpoints.
//!
//! Everything random is drawn by (seed, purpose, step, sample), so a run that goes on from a checkpoint computes the
//! same bits as one that was never stopped.
use super::checkpoint::{Card, Checkpoint, Progress};
use super::config::Training;
use super::log::Log;
use super::samples::Samples;
use super::{Error, schedule::learning_rate};
use crate::machine::cuda;
use crate::machine::philox::{Philox, Purpose};
use crate::program::{Arrays, Device, Machine, Optimiser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// To learn from: changed at random, by the number of its batch.
    Learn(u64),
    /// To watch the loss on: the same every time.
    Watch,
}

/// A machine as training sees it.
pub type Computer = dyn Machine<Real = f32>;

/// The losses of a batch.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Of each sample.
    pub samples: Vec<f64>,
    /// Parts of their mean that are logged by themselves, by name.
    pub parts: Vec<(String, f64)>,
}

/// What differs between pretraining and fine-tuning.
pub trait Job {
    /// What is trained on.
    fn samples(&self) -> &Samples<'_>;
    /// Fills the inputs with these samples, as many as the batch holds.
    fn fill(&self, machine: &mut Computer, numbers: &[usize], draw: Draw) -> cuda::Result<()>;
    /// The losses of the batch, as the last run left them.
    fn losses(&self, machine: &Computer) -> cuda::Result<Losses>;
    /// What a model file of this run says of itself.
    fn card(&self, progress: Progress) -> Card;
    /// What a model file holds beside the network's weights.
    fn extras(&self) -> Arrays<f32> {
        Arrays::default()
    }
}

/// Where a run is computed and kept.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// What computes.
    pub device: &'a Device,
    /// Where checkpoints and logs go.
    pub folder: &'a Path,
    /// Whether it goes on from the last checkpoint in the folder, if there is one.
    pub resume: bool,
    /// Whether it shows its progress on standard error.
    pub shown: bool,
}

/// One run: a job on some samples.
pub struct Session<'a> {
    /// What is trained.
    pub job: &'a dyn Job,
    /// How its parameters are updated.
    pub optimiser: &'a Optimiser,
    /// Schedule and seed.
    pub training: &'a Training,
    /// Scans in a batch.
    pub batch: usize,
    /// Samples to learn from.
    pub learned: &'a [usize],
    /// Samples to watch the loss on.
    pub watched: &'a [usize],
    /// Where it is computed and kept.
    pub run: Run<'a>,
    /// How the run is called beside its progress bar.
    pub title: &'a str,
}

impl Session<'_> {
    /// Updates in an epoch: batches that are not full are left out, in another random order every epoch.
    fn updates(&self) -> u64 {
        (self.learned.len() / (self.batch * self.training.accumulate)).max(1) as u64
    }
    /// Updates in all.
    fn steps(&self) -> u64 {
        let Training { steps, epochs, .. } = *self.training;
        if steps > 0 { steps } else { self.updates() * epochs as u64 }
    }
    /// Epochs in all; the last may be cut short.
    fn epochs(&self) -> usize {
        self.steps().div_ceil(self.updates()) as usize
    }
    /// Runs to the last epoch, or until the watched loss has not fallen for too long.
    ///
    /// # Errors
    /// A loss that is not finite; files that cannot be written, or a checkpoint that does not fit.
    pub fn train(&self, machine: &mut Computer) -> Result<Progress, Error> {
        let mut progress = Progress::default();
        let last = self.run.folder.join("last.safetensors");
        if self.run.resume && last.exists() {
            let checkpoint = Checkpoint::read(&last)?;
            checkpoint.load_into(machine, &[])?;
            if let Some(name) = self.optimiser.restore(machine, &checkpoint.arrays)? {
                let reason =
                    format!("`{name}` is missing or does not fit: was it written with other settings?");
                return Err(Error::Checkpoint { path: last, reason });
            }
            progress = checkpoint.card.progress;
        }
        let mut log = match progress.steps {
            0 => Log::create(self.run.folder)?,
            done => Log::resume(self.run.folder, done - 1)?,
        };
        let bar = Bar::new(self.title, self.epochs(), self.steps(), progress, self.run.shown);
        for epoch in progress.epochs..self.epochs() {
            if self.out_of_patience(&progress) {
                break;
            }
            let loss = self.epoch(machine, epoch, &mut progress, &mut log, &bar)?;
            let watched = self.watch(machine)?;
            if let Some(watched) = watched {
                log.write(progress.steps - 1, &[("epoch", epoch as f64 + 1.0), ("watched_loss", watched)])?;
            }
            progress.epochs = epoch + 1;
            let better = watched.is_some_and(|w| progress.best.is_none_or(|best| w < best));
            if better {
                (progress.best, progress.best_epoch) = (watched, epoch + 1);
            }
            let checkpoint = progress.epochs == self.epochs()
                || progress.epochs.is_multiple_of(self.training.checkpoint_epochs)
                || self.out_of_patience(&progress);
            if better || (watched.is_none() && checkpoint) {
                self.write_model(machine, progress)?;
            }
            if checkpoint {
                let mut arrays = machine.weights()?;
                arrays.extend(self.optimiser.state(machine)?);
                Checkpoint::write(&last, &self.job.card(progress), &arrays)?;
            }
            bar.epoch(progress, loss, watched);
        }
        bar.finish();
        Ok(progress)
    }
    fn out_of_patience(&self, progress: &Progress) -> bool {
        let patience = self.training.patience;
        patience > 0 && progress.best.is_some() && progress.epochs >= progress.best_epoch + patience
    }
    /// One epoch of updates; returns its mean loss.
    fn epoch(
        &self,
        machine: &mut Computer,
        epoch: usize,
        progress: &mut Progress,
        log: &mut Log,
        bar: &Bar,
    ) -> Result<f64, Error> {
        let (training, updates, total) = (self.training, self.updates(), self.steps());
        let warmup = (training.warmup_epochs * updates as f64).round() as u64;
        let mut order = self.learned.to_vec();
        Philox::new(training.seed, Purpose::Shuffle, epoch as u64, 0).shuffle(&mut order);
        let mut order = order.iter().copied().cycle();
        let now = updates.min(total - progress.steps);
        let batches = 0..now * training.accumulate as u64;
        let batches = batches.map(|_| order.by_ref().take(self.batch).collect::<Vec<usize>>());
        let mut batches = batches.peekable();
        let mut sum = 0.0;
        for _ in 0..now {
            let (step, start) = (progress.steps, Instant::now());
            let rate = learning_rate(step, total, warmup, training.lr, training.min_lr);
            let (mut loss, mut parts) = (0.0, BTreeMap::<String, Vec<f64>>::new());
            for batch in 0..training.accumulate {
                let numbers = batches.next().expect("as many as the epoch needs");
                let draw = Draw::Learn(step * training.accumulate as u64 + batch as u64);
                self.job.fill(machine, &numbers, draw)?;
                if batch + 1 < training.accumulate {
                    self.optimiser.differentiate(machine, batch)?;
                } else {
                    self.optimiser.update(machine, step, rate)?;
                }
                // On its way while the machine computes.
                if let Some(next) = batches.peek() {
                    let samples = self.job.samples();
                    machine.prefetch_stored(samples.cache, &samples.rows_of(next))?;
                }
                let losses = self.job.losses(machine)?;
                loss += self.finite_mean(&losses.samples, &numbers, step)? / training.accumulate as f64;
                losses.parts.into_iter().for_each(|(name, part)| parts.entry(name).or_default().push(part));
            }
            let norm = self.optimiser.gradient_norm(machine)?;
            let mean = |of: &Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
            let parts = parts.iter().map(|(name, of)| (name.as_str(), mean(of)));
            let done = (step + 1) as f64 / total as f64;
            let line = [("loss", loss), ("lr", rate), ("grad_norm", norm), ("progress", done)];
            let line = line.into_iter().chain(parts);
            log.write(step, &line.collect::<Vec<_>>())?;
            bar.update(loss, self.batch * training.accumulate, start.elapsed());
            progress.steps += 1;
            sum += loss;
        }
        Ok(sum / now as f64)
    }
    /// The mean loss of samples `numbers`, or an error that names the scans it is not finite for.
    fn finite_mean(&self, losses: &[f64], numbers: &[usize], step: u64) -> Result<f64, Error> {
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        if loss.is_finite() {
            return Ok(loss);
        }
        let bad: Vec<usize> =
            (0..numbers.len()).filter(|&i| !losses[i].is_finite()).map(|i| numbers[i]).collect();
        let name = |&number: &usize| self.job.samples().scan(number).path.display().to_string();
        let names: Vec<String> = bad.iter().map(name).collect();
        let culprit = if bad.len() == numbers.len() {
            format!(
                "for every scan of the batch ({}): the weights have diverged; lower train.lr",
                names.join(", ")
            )
        } else {
            format!("look at {}", names.join(", "))
        };
        Err(Error::NotFinite { step, culprit })
    }
    /// The mean loss of the watched samples with the weights that would be kept.
    fn watch(&self, machine: &mut Computer) -> cuda::Result<Option<f64>> {
        if self.watched.is_empty() {
            return Ok(None);
        }
        let sum = self.optimiser.averaged(machine, |machine| {
            let mut sum = 0.0;
            for numbers in self.watched.chunks(self.batch) {
                let full: Vec<usize> = numbers.iter().copied().cycle().take(self.batch).collect();
                self.job.fill(machine, &full, Draw::Watch)?;
                self.optimiser.evaluate(machine)?;
                sum += self.job.losses(machine)?.samples[..numbers.len()].iter().sum::<f64>();
            }
            Ok(sum)
        })?;
        Ok(Some(sum / self.watched.len() as f64))
    }
    fn write_model(&self, machine: &mut Computer, progress: Progress) -> Result<(), Error> {
        let mut weights = self.optimiser.averaged(machine, |machine| machine.weights())?;
        weights.extend(self.job.extras());
        Checkpoint::write(&self.run.folder.join("model.safetensors"), &self.job.card(progress), &weights)
    }
}

/// The progress bar; a line now and then where standard error is no terminal.
struct Bar {
    bar: ProgressBar,
    title: String,
    epochs: usize,
    lines: bool,
}

impl Bar {
    fn new(title: &str, epochs: usize, steps: u64, done: Progress, shown: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = shown && terminal;
        let target = if bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg}, {eta} left");
        bar.set_style(style.expect("the template is valid"));
        bar.set_prefix(title.to_owned());
        bar.set_position(done.steps);
        bar.reset_eta();
        Bar { bar, title: title.to_owned(), epochs, lines: shown && !terminal }
    }
    fn update(&self, loss: f64, volumes: usize, took: Duration) {
        let rate = volumes as f64 / took.as_secs_f64().max(1e-9);
        self.bar.set_message(format!("loss {loss:.4}, {rate:.1} volumes/s"));
        self.bar.inc(1);
    }
    fn epoch(&self, progress: Progress, loss: f64, watched: Option<f64>) {
        let every = self.epochs.div_ceil(10);
        if self.lines && (progress.epochs.is_multiple_of(every) || progress.epochs == self.epochs) {
            let watched = watched.map_or(String::new(), |w| format!(", watched {w:.4}"));
            let left = indicatif::HumanDuration(self.bar.eta());
            eprintln!(
                "{} epoch {}/{}: loss {loss:.4}{watched}, {left} left",
                self.title, progress.epochs, self.epochs
            );
        }
    }
    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
