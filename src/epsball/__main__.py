"""`python -m epsball` is `epsball`."""

from epsball.cli.main import main

if __name__ == "__main__":
    main()
