"""python -m metasdf"""

from metasdf.cli import main

if __name__ == "__main__":
    main()
