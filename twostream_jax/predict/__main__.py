"""Starts the command; see `twostream_jax.predict.command`."""

if __name__ == "__main__":
  # Not above: processes that decode import this file, and need none of it.
  from twostream_jax import interrupts

  with interrupts.exit_at_once("twostream_jax.predict"):
    from twostream_jax.predict import command

    with interrupts.exit_at_signals("twostream_jax.predict"):
      command.run()
