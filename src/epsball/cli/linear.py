"""`epsball linear`: robust linear models of tables, one command per file."""

from __future__ import annotations

from cyclopts import App

from epsball.cli.filling import fill
from epsball.cli.linear_attack import attack
from epsball.cli.linear_fit import fit
from epsball.cli.linear_path import path

linear = App(name="linear", help="Linear models of tables, where the worst case is exact: fit, attack, compare radii.")
linear.command(fit, config=fill)
linear.command(attack, config=fill)
linear.command(path, config=fill)
