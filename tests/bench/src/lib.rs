// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the measuring programs have in common.

pub mod sys;
